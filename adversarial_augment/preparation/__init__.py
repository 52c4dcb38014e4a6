"""The subcommands of `prepare`, one a file: its flags (`add_arguments`) and what it does (`run`)."""
