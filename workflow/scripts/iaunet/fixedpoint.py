"""The fixed-point numbers in which network outputs are stored, and what they mean.

Everything after the network works on these integers, so that two machines, tilings or
batch sizes whose floats differ in the last bit cannot make two tiles disagree.

=======  ======  ======================================  ====================
name     dtype   value stored                            zero where fg < floor
=======  ======  ======================================  ====================
fg       uint8   round(255 p), foreground probability    no
seed     uint16  round(32767 p), seed probability        yes
off      int16   round(16 o), offset to the centre, px   yes
lsig     uint8   round(32 log sigma), sigma >= 1 px      yes
id       int8    round(127 z), unit identity vector      yes (all cells' fg)
emb      int16   round(1024 a), embedding, if there is   yes
sem      uint8   most probable class, 0 background       no
=======  ======  ======================================  ====================
"""

import numpy as np

SCALE = {"fg": 255, "seed": 32767, "off": 16, "lsig": 32, "id": 127, "emb": 1024}
DTYPE = {
    "fg": np.dtype("u1"),
    "seed": np.dtype("u2"),
    "off": np.dtype("i2"),
    "lsig": np.dtype("u1"),
    "id": np.dtype("i1"),
    "emb": np.dtype("i2"),
    "sem": np.dtype("u1"),
}
RANGE = {
    "fg": (0, 255),
    "seed": (0, 32767),
    "off": (-32767, 32767),
    "lsig": (0, 255),
    "id": (-127, 127),
    "emb": (-32767, 32767),
}
FG_FLOOR = 26
"""Where the stored ``fg`` is below this (p < 0.1), the other outputs are stored as 0."""

SIGMA = np.exp(np.arange(256) / SCALE["lsig"])
"""Bandwidth in px for every value that ``lsig`` can store."""
