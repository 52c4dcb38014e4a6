"""Several devices and processes: where arrays live, how processes meet, which platform a program is for."""
