"""What stops a command, and with which exit code (0 done, 1 failed, 2 bad input, 3 unfinished, 130 interrupted)."""


class UserError(Exception):
    """Bad input or config: one clear line that names the file, row and field and says what to do. Exit code 2."""


class Unfinished(Exception):
    """The command finished, but rows or trials are missing; the message names them. Exit code 3."""
