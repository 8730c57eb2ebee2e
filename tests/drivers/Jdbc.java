/* The work of test_drivers.py with PostgreSQL's JDBC driver. */
import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;

public class Jdbc {
	static final int TURNS = Integer.parseInt(System.getenv("TURNS"));
	static final String[] DATABASES = { "transaction", "session", "one" };
	static final int CLIENTS = 9;
	static final int KINDS = 7;

	static void check(boolean holds, String what) {
		if (!holds)
			throw new IllegalStateException("not as it should be: " + what);
	}

	static Connection connect(String database) throws SQLException {
		String url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + database;
		/* named statements from the third time on */
		return DriverManager.getConnection(url + "?user=postgres&sslmode=disable&prepareThreshold=3");
	}

	static void text(Connection c, Random chance) throws SQLException {
		int n = chance.nextInt(1000000);
		String sent = Character.toString('a' + chance.nextInt(26)).repeat(chance.nextInt(30000));
		try (PreparedStatement s = c.prepareStatement("select ?::int + 1, ?::text")) {
			s.setInt(1, n);
			s.setString(2, sent);
			ResultSet rows = s.executeQuery();
			check(rows.next() && rows.getInt(1) == n + 1 && rows.getString(2).equals(sent), "text");
		}
	}

	static int batch(Connection c, Random chance, int number) throws SQLException {
		int rows = 1 + chance.nextInt(300);
		boolean commits = chance.nextBoolean();
		c.setAutoCommit(false);
		try (PreparedStatement s = c.prepareStatement("insert into books values (?)")) {
			for (int n = 0; n < rows; n++) {
				s.setInt(1, number);
				s.addBatch();
			}
			s.executeBatch();
		}
		if (commits)
			c.commit();
		else
			c.rollback();
		c.setAutoCommit(true);
		return commits ? rows : 0;
	}

	/* a portal that is suspended again and again */
	static void fetch(Connection c) throws SQLException {
		c.setAutoCommit(false);
		try (Statement s = c.createStatement()) {
			int n = 0;
			s.setFetchSize(50);
			ResultSet rows = s.executeQuery("select g, repeat('z', g % 100) from generate_series(1, 2000) g");
			while (rows.next()) {
				n++;
				check(rows.getInt(1) == n && rows.getString(2).length() == n % 100, "fetch");
			}
			check(n == 2000, "length of the result");
		}
		c.commit();
		c.setAutoCommit(true);
	}

	static void error(Connection c) throws SQLException {
		try (Statement s = c.createStatement()) {
			s.execute("select 1 / 0");
		} catch (SQLException e) {
			if (!"22012".equals(e.getSQLState()))
				throw e;
			return;
		}
		throw new IllegalStateException("no error");
	}

	static int copyIn(Connection c, Random chance, int number) throws Exception {
		int rows = chance.nextInt(3000);
		CopyManager copy = c.unwrap(PGConnection.class).getCopyAPI();
		copy.copyIn("copy books from stdin", new StringReader((number + "\n").repeat(rows)));
		return rows;
	}

	static void copyOut(Connection c) throws Exception {
		StringWriter got = new StringWriter();
		StringBuilder expected = new StringBuilder();
		for (int n = 1; n <= 4000; n++)
			expected.append(n).append('\n');
		c.unwrap(PGConnection.class).getCopyAPI().copyOut("copy (select generate_series(1, 4000)) to stdout", got);
		check(got.toString().contentEquals(expected), "copy out");
	}

	static void statements(Connection c, Random chance) throws SQLException {
		for (int n = 0; n < 10; n++) {
			int which = chance.nextInt(60);
			try (PreparedStatement s = c.prepareStatement("select " + which + " + ?")) {
				s.setInt(1, n);
				ResultSet rows = s.executeQuery();
				check(rows.next() && rows.getInt(1) == which + n, "statements");
			}
		}
	}

	static int turn(Connection c, Random chance, int number) throws Exception {
		switch (chance.nextInt(KINDS)) {
		case 0: text(c, chance); return 0;
		case 1: return batch(c, chance, number);
		case 2: fetch(c); return 0;
		case 3: error(c); return 0;
		case 4: return copyIn(c, chance, number);
		case 5: copyOut(c); return 0;
		default: statements(c, chance); return 0;
		}
	}

	static void work(int number) throws Exception {
		Random chance = new Random(number);
		String database = DATABASES[number % DATABASES.length];
		Connection c = connect(database);
		long written = 0;
		for (int turn = 0; turn < TURNS; turn++) {
			written += turn(c, chance, number);
			System.out.println("a turn");
			if (turn % 40 == 39) {
				c.close();
				c = connect(database);
			}
		}
		ResultSet rows = c.createStatement().executeQuery("select count(*) from books where client = " + number);
		check(rows.next() && rows.getLong(1) == written, "client " + number + ": not " + written + " rows");
		c.close();
	}

	public static void main(String[] arguments) throws InterruptedException {
		ExecutorService clients = Executors.newFixedThreadPool(CLIENTS);
		List<Future<?>> all = new ArrayList<>();
		int errors = 0;
		for (int n = 0; n < CLIENTS; n++) {
			int number = n;
			all.add(clients.submit(() -> {
				work(number);
				return null;
			}));
		}
		for (Future<?> one : all) {
			try {
				one.get();
			} catch (ExecutionException e) {
				e.getCause().printStackTrace();
				errors++;
			}
		}
		System.exit(errors == 0 ? 0 : 1);
	}
}
