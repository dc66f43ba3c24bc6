"""What survives a crash: the records of all jobs, behind one contract."""
