"""What stops a command, and with which exit code (0 done, 1 failed, 2 bad input, 3 unfinished, 130 interrupted)."""


class UserError(Exception):
    """Bad input or config: one clear line that names the file, row and field and says what to do. Exit code 2."""


class RayEnded(ConnectionError):
    """Ray's process on this machine has ended, and what waits for Ray may wait for ever. Exit code 1, and the same command goes on."""


class Unfinished(Exception):
    """The command finished, but rows or trials are missing; the message names them. Exit code 3."""
