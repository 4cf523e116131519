"""Runs a command at a terminal of its own and types what it asks for.

Standard input: [["what it asks", "what is typed"], ...] as JSON. Prints what the terminal showed; ends as the command does.
"""
import json
import os
import pty
import sys

script = json.load(sys.stdin)
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
shown, seen = b"", 0
while True:
    try:
        data = os.read(terminal, 4096)
    except OSError:
        break
    if not data:
        break
    shown += data
    while script and script[0][0].encode() in shown[seen:]:
        typed = script.pop(0)[1]
        seen = len(shown)
        os.write(terminal, typed.encode() + b"\r")
_, status = os.waitpid(pid, 0)
sys.stdout.buffer.write(shown)
sys.exit(os.waitstatus_to_exitcode(status))
