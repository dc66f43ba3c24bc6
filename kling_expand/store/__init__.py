"""Job stores, which record all jobs under one contract so that they survive a crash."""
