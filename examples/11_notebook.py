"""The blocking client in a notebook: each ``# %%`` starts a cell, and no asyncio is needed."""

# %% Import the packages.
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from kling_expand import Padding
from kling_expand.blocking import KlingClient

folder = TemporaryDirectory()
os.chdir(folder.name)  # so that the example leaves no files

# %% Start an emulator. With real credentials, omit this cell, the arguments of the client, and the last cell.
command = [sys.executable, "-m", "kling_expand.emulator", "--queue-seconds", "0.2", "--work-seconds", "0.5"]
emulator = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
url, *pairs = (emulator.stdout.readline() if emulator.stdout else "").split()
keys = dict(pair.split("=", 1) for pair in pairs)

# %% Open a client. It stays open until it is closed or the notebook ends.
kling = KlingClient(base_url=url, api_key=keys["api_key"]).open()
photo = Path(__file__).parent / "photos" / "chelsea.jpg"
before = Image.open(photo)
print("before", before.size)

# %% Expand the photo and open the result.
result = kling.expand(photo, Padding(left=150, right=150), prompt="a cat on a sofa")
(path,) = result.save("out/")
after = Image.open(path)
print("after", path, "with aspect ratio", round(after.width / after.height, 2))

# %% Compare both side by side.
sheet = Image.new("RGB", (before.width + after.width + 20, max(before.height, after.height)), "white")
sheet.paste(before, (0, 0))
sheet.paste(after, (before.width + 20, 0))
sheet.save("out/before-and-after.png")
print("files:", *sorted(str(path) for path in Path("out").iterdir()))

# %% Close the client.
kling.close()
folder.cleanup()

# %% Stop the emulator.
emulator.terminate()
emulator.communicate()

# Output:
# before (451, 300)
# after out/chelsea-0.png with aspect ratio 2.5
# files: out/before-and-after.png out/chelsea-0.png
