"""`pgkeeper trial`: sessions, kills, and what became of every byte. It knows nothing of the hanger.

The lower half (account, guard, rundir, process, pginstall, postgres, waiting) starts servers and
takes them away again; the test bed stands on it too.
"""
