"""How does it feel in a notebook? Without asyncio: each ``# %%`` is a cell, pictures before and after."""

# %% A service to play with; leave this out, and the client's arguments, where there are real keys.
import subprocess
import sys
from pathlib import Path

from PIL import Image

from kling_expand import Padding
from kling_expand.blocking import KlingClient

command = [sys.executable, "-m", "kling_expand.emulator", "--queue-seconds", "0.2", "--work-seconds", "0.5"]
emulator = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
url, *words = (emulator.stdout.readline() if emulator.stdout else "").split()
keys = dict(word.split("=", 1) for word in words)

# %% Open a client. It stays open until it is closed, or the notebook is.
kling = KlingClient(base_url=url, api_key=keys["api_key"]).open()
photo = Path(__file__).parent / "photos" / "chelsea.jpg"
before = Image.open(photo)
print("before", before.size)

# %% Expand, and look at it.
result = kling.expand(photo, Padding(left=150, right=150), prompt="a cat on a sofa")
(path,) = result.save("out/")
after = Image.open(path)
print("after", path, "as wide as", round(after.width / after.height * before.height), "to", before.height)

# %% Side by side.
sheet = Image.new("RGB", (before.width + after.width + 20, max(before.height, after.height)), "white")
sheet.paste(before, (0, 0))
sheet.paste(after, (before.width + 20, 0))
sheet.save("out/before-and-after.png")
print("side by side in", *sorted(str(path) for path in Path("out").iterdir()))

# %% At the end.
kling.close()
emulator.terminate()
emulator.communicate()

# Output:
# before (451, 300)
# after out/chelsea-0.png as wide as 751 to 300
# side by side in out/before-and-after.png out/chelsea-0.png
