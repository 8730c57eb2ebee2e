// The work of test_drivers.py with node-postgres, pg-cursor and pg-copy-streams.
'use strict';
const { Client } = require('pg');
const Cursor = require('pg-cursor');
const copy = require('pg-copy-streams');

const TURNS = Number(process.env.TURNS);
const DATABASES = ['transaction', 'session', 'one'];
const CLIENTS = 9;

function check(holds, what) {
	if (!holds) throw new Error(`not as it should be: ${what}`);
}

async function connect(database) {
	const client = new Client({
		host: process.env.PGHOST, port: Number(process.env.PGPORT), user: 'postgres', database,
	});
	await client.connect();
	return client;
}

// Each returns the number of rows that it has written to books.
const kinds = [
	async function text(client, number, turn) {
		const sent = String.fromCharCode(97 + (turn % 26)).repeat(1 + ((turn * 7919 + number * 104729) % 60000));
		const { rows } = await client.query('select $1::text as t', [sent]);
		check(rows[0].t === sent, 'text');
		return 0;
	},
	async function prepared(client, number, turn) {
		const which = turn % 37;
		const { rows } = await client.query({
			name: `p${which}`, text: `select $1::int + ${which} as n`, values: [turn],
		});
		check(rows[0].n === turn + which, 'prepared');
		return 0;
	},
	async function transaction(client, number, turn) {
		await client.query('begin');
		await client.query('insert into books values ($1)', [number]);
		await client.query('insert into books values ($1)', [number]);
		await client.query(turn % 3 ? 'commit' : 'rollback');
		return turn % 3 ? 2 : 0;
	},
	async function error(client) {
		try {
			await client.query('select 1 / 0');
		} catch (e) {
			check(e.code === '22012', e.message);
			return 0;
		}
		throw new Error('no error');
	},
	async function cursor(client, number, turn) {
		await client.query('begin');
		const cursor = client.query(new Cursor('select g, repeat(g::text, $1) r from generate_series(1, 500) g', [turn % 20]));
		let n = 0;
		for (let rows; (rows = await cursor.read(77)).length;) {
			for (const row of rows) {
				n++;
				check(row.g === n && row.r === String(n).repeat(turn % 20), 'cursor');
			}
		}
		check(n === 500, 'length of the cursor');
		await cursor.close();
		await client.query('commit');
		return 0;
	},
	async function copyOut(client) {
		const chunks = [];
		for await (const chunk of client.query(copy.to('copy (select generate_series(1, 3000)) to stdout')))
			chunks.push(chunk);
		const expected = Array.from({ length: 3000 }, (_, n) => `${n + 1}\n`).join('');
		check(Buffer.concat(chunks).toString() === expected, 'copy out');
		return 0;
	},
	async function copyIn(client, number, turn) {
		const rows = 1 + ((turn * 613) % 3000);
		const stream = client.query(copy.from('copy books from stdin'));
		await new Promise((resolve, reject) => {
			stream.on('finish', resolve);
			stream.on('error', reject);
			for (let n = 0; n < rows; n++) stream.write(`${number}\n`);
			stream.end();
		});
		return rows;
	},
];

async function work(number) {
	const database = DATABASES[number % DATABASES.length];
	let client = await connect(database);
	let written = 0;
	for (let turn = 0; turn < TURNS; turn++) {
		written += await kinds[(turn + number) % kinds.length](client, number, turn);
		console.log('a turn');
		if (turn % 40 === 39) {
			await client.end();
			client = await connect(database);
		}
	}
	const { rows } = await client.query('select count(*)::int as n from books where client = $1', [number]);
	check(rows[0].n === written, `client ${number}: ${rows[0].n} rows instead of ${written}`);
	await client.end();
}

Promise.all(Array.from({ length: CLIENTS }, (_, number) => work(number))).catch((error) => {
	console.error(error);
	process.exit(1);
});
