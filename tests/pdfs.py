"Where a PDF has its words and its ink, by its own positions."

import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image


def text_of(pdf, *options):
    "The text of a PDF as pdftotext prints it; the test is skipped without that."
    if not shutil.which("pdftotext"):
        pytest.skip("pdftotext (poppler-utils) is not installed, so no words of PDFs can be read")
    command = ["pdftotext", *options, str(pdf), "-"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def words_of(pdf):
    "Every word of a PDF as page, left, top, right, bottom (points) and text, by its own positions."
    found = []
    for number, page in enumerate(text_of(pdf, "-bbox").split("<page ")[1:], 1):
        for m in re.finditer(
            r'<word xMin="([\d.]+)" yMin="([\d.]+)" xMax="([\d.]+)" yMax="([\d.]+)">(.*?)</word>',
            page,
        ):
            found.append((number, *map(float, m.groups()[:4]), m[5]))
    return found


def overlapping(words, least=1.5):
    "Pairs of words of one page whose boxes share more than so many points both ways."
    found = []
    for number in {w[0] for w in words}:
        here = sorted((w for w in words if w[0] == number), key=lambda w: w[2])
        for i, a in enumerate(here):
            for b in here[i + 1 :]:
                if b[2] >= a[4] - least:
                    break
                across = min(a[3], b[3]) - max(a[1], b[1])
                # boxes are as high as a line: letters meet only where most of it is shared
                up = min(a[4], b[4]) - b[2]
                if across > least and up > 0.5 * min(a[4] - a[2], b[4] - b[2]):
                    found.append((number, a[5], b[5]))
    return found


def outside(words, wide, tall):
    "Words that leave a page of so many points."
    return [w for w in words if w[1] < 0 or w[2] < 0 or w[3] > wide or w[4] > tall]


def filled(pdf, folder):
    "How far down each page has ink, its number left out, and its largest gap, as shares of the page."
    if not shutil.which("pdftoppm"):
        pytest.skip("pdftoppm (poppler-utils) is not installed, so no page of a PDF can be seen")
    subprocess.run(["pdftoppm", "-r", "30", "-gray", str(pdf), str(folder / "p")], check=True)
    found = []
    for path in sorted(folder.glob("p-*.pgm")):
        rows = (np.asarray(Image.open(path)) < 250).any(1)
        rows[int(0.93 * len(rows)) :] = False
        at = np.flatnonzero(rows)
        at = np.concatenate([[0], at, [len(rows) * 0.93]])
        found.append((at[-2] / len(rows), np.diff(at).max() / len(rows)))
    return found
