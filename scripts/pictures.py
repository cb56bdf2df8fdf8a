#!/usr/bin/env python3
"""Draws docs/tour.svg from a real run of the tour, and embeds the pictures for the built documentation.

    python3 scripts/pictures.py          run the tour, draw it, embed all pictures
    python3 scripts/pictures.py embed    embed the pictures as they are

A link from the documentation to a picture would need the address of the repository. So each picture
is also a data URI, in docs/embedded/: as a link definition, which comes before the page that shows
the picture and takes precedence over the definition in that page.
"""

import base64
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLUMNS, ROWS = 126, 25
SECONDS = 8.5
PICTURES = {"tour.svg": "image/svg+xml", "dashboard.png": "image/png"}


def record():
    """Runs the tour in a terminal until it is stopped by Ctrl-C, and returns all that it wrote."""
    subprocess.run(["cargo", "build", "--example", "tour"], cwd=ROOT, check=True)
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    program = Path(target) / "debug/examples/tour"
    child, terminal = pty.fork()
    if child == 0:
        environment = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
        os.chdir(ROOT)
        os.execve(program, [program], environment | {"TERM": "xterm-256color"})
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    end, written, stopped = time.monotonic() + SECONDS, b"", False
    while True:
        if not stopped and time.monotonic() >= end:
            os.kill(child, signal.SIGINT)
            stopped = True
        if select.select([terminal], [], [], 0.05)[0]:
            try:
                chunk = os.read(terminal, 65536)
            except OSError:  # Linux reports the end of the other side as an error.
                break
            if not chunk:
                break
            written += chunk
    _, status = os.waitpid(child, 0)
    if status != 0:
        sys.exit(f"the tour ended with status {status}")
    return written.decode()


def last_screen(written):
    """The lines on the alternate screen when the tour left it, each with the style it ended in."""
    rows = [[" "] * COLUMNS for _ in range(ROWS)]
    styles = [""] * ROWS
    row = column = 0
    style = ""
    for escape_, parameters, command, character in re.findall(
        r"(\x1b\[)([?\d;]*)([A-Za-z])|([^\x1b])", written
    ):
        if not escape_:
            if character == "\r":
                column = 0
            elif character == "\n":
                row += 1
            elif column < COLUMNS:
                rows[row][column] = character
                styles[row] = style
                column += 1
        elif command == "H":
            row = column = 0
        elif command == "K":
            rows[row][column:] = [" "] * (COLUMNS - column)
        elif command == "J":
            rows[row][column:] = [" "] * (COLUMNS - column)
            rows[row + 1 :] = [[" "] * COLUMNS for _ in range(ROWS - row - 1)]
        elif command == "m":
            style = "" if parameters == "0" else parameters
        elif command == "l" and parameters == "?1049":
            lines = ["".join(line).rstrip() for line in rows]
            return list(zip(lines, styles))
        elif command not in "hl":
            sys.exit(f"unknown control sequence {parameters}{command}")
    sys.exit("the tour did not leave the screen")


def draw(lines):
    """An SVG picture of these lines. Each has its length fixed, so any monospaced font fits."""
    while lines and not lines[-1][0]:
        lines.pop()
    size, pitch, leading, margin, head = 13, 7.8, 19, 16, 34
    width = round(COLUMNS * pitch + 2 * margin)
    height = head + len(lines) * leading + margin
    classes = {"": "p", "1": "b", "2": "d", "31": "r", "33": "y"}
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        "<title>The tour: a table of eight workers, each with its state and the reason</title>",
        "<style>"
        f"text{{font:{size}px ui-monospace,'SF Mono',Menlo,Consolas,'DejaVu Sans Mono',monospace;"
        "white-space:pre;fill:#d5dbe3}.b{font-weight:bold;fill:#fff}.d{fill:#8b949e}"
        ".r{fill:#ff7b72}.y{fill:#e3b341}.h{fill:#8b949e}</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#161b22"/>',
        f'<text class="h" x="{margin}" y="22">$ cargo run --example tour</text>',
    ]
    for number, (line, style) in enumerate(lines):
        text = line.lstrip()
        if text:
            x = margin + (len(line) - len(text)) * pitch
            svg.append(
                f'<text class="{classes[style]}" x="{x:.1f}" y="{head + 13 + number * leading}" '
                f'textLength="{len(text) * pitch:.1f}" xml:space="preserve">'
                f"{escape(text, quote=False)}</text>"
            )
    return "\n".join(svg + ["</svg>", ""])


def embed():
    folder = ROOT / "docs/embedded"
    folder.mkdir(exist_ok=True)
    for picture, kind in PICTURES.items():
        name = picture.split(".")[0]
        data = base64.b64encode((ROOT / "docs" / picture).read_bytes()).decode()
        (folder / f"{name}.md").write_text(f"[{name}]: data:{kind};base64,{data}\n")


if sys.argv[1:] == []:
    (ROOT / "docs/tour.svg").write_text(draw(last_screen(record())))
elif sys.argv[1:] != ["embed"]:
    sys.exit(__doc__)
embed()
