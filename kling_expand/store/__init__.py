"""Job stores: the records of all jobs, which survive a crash, behind one contract."""
