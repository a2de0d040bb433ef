"""Small files of microscopes, written byte by byte as their formats are described."""

import struct

import h5py
import numpy as np
import tifffile


def write_lif(path, values, step_um=(0.5, 0.25), tiles=(), **scan):
    """Write values (m, c, y, x), uint8, as a LIF with one image; tiles at (y, x) micrometers.

    `scan` are the attributes FlipX, FlipY and SwapXY.
    """
    m, c, y, x = values.shape
    sizes = ((1, x, step_um[1] * (x - 1) * 1e-6), (2, y, step_um[0] * (y - 1) * 1e-6), (10, m, m))
    strides = (1, x, c * y * x)
    channels = "".join(
        f'<ChannelDescription DataType="0" ChannelTag="0" Resolution="8" Min="0" Max="255" Unit="" '
        f'NameOfMeasuredQuantity="" LUTName="dye {k}" IsLUTInverted="0" BytesInc="{k * y * x}" '
        f'BitInc="0"/>'
        for k in range(c)
    )
    dimensions = "".join(
        f'<DimensionDescription DimID="{number}" NumberOfElements="{n}" Origin="0" '
        f'Length="{length}" Unit="m" BitInc="0" BytesInc="{stride}"/>'
        for (number, n, length), stride in zip(sizes, strides, strict=True)
    )
    placed = "".join(
        f'<Tile FieldX="0" FieldY="{k}" PosX="{a * 1e-6:.12f}" PosY="{b * 1e-6:.12f}" PosZ="0"/>'
        for k, (b, a) in enumerate(tiles)
    )
    flags = " ".join(f'{name}="{int(on)}"' for name, on in scan.items())
    xml = (
        '<LMSDataContainerHeader Version="2"><Element Name="drawn" UniqueID="a"><Memory Size="0" '
        'MemoryBlockID="MemBlock_0"/><Children><Element Name="scan" UniqueID="b"><Data><Image>'
        f"<ImageDescription><Channels>{channels}</Channels><Dimensions>{dimensions}</Dimensions>"
        f'</ImageDescription><Attachment Name="TileScanInfo" {flags}>{placed}</Attachment></Image>'
        f'</Data><Memory Size="{values.nbytes}" MemoryBlockID="MemBlock_1"/></Element></Children>'
        "</Element></LMSDataContainerHeader>"
    )
    name = "MemBlock_1"
    path.write_bytes(
        struct.pack("<IIBI", 0x70, 2 * len(xml) + 5, 0x2A, len(xml))
        + xml.encode("utf-16-le")
        + struct.pack("<IIBQBI", 0x70, 2 * len(name) + 14, 0x2A, values.nbytes, 0x2A, len(name))
        + name.encode("utf-16-le")
        + np.ascontiguousarray(values, np.uint8).tobytes()
    )
    return path


def write_oif(path, values, pixel_um):
    """Write values (c, z, y, x) as an OIF and its folder; pixel sizes z, y, x."""
    folder = path.with_name(f"{path.name}.files")
    folder.mkdir()
    for c, z in np.ndindex(values.shape[:2]):
        tifffile.imwrite(folder / f"s_C{c + 1:03d}Z{z + 1:03d}.tif", values[c, z])
    sections = {
        "ProfileSaveInfo": {"Name": '"OIF"', "Version": '"1.0"'},
        "Axis 3 Parameters Common": {
            "AxisCode": '"Z"',
            "Interval": pixel_um[0] * 1000,
            "PixUnit": '"nm"',
        },
        "Reference Image Parameter": {
            "HeightConvertValue": pixel_um[1],
            "HeightUnit": '"um"',
            "WidthConvertValue": pixel_um[2],
            "WidthUnit": '"um"',
        },
    }
    text = "".join(
        f"[{name}]\r\n" + "".join(f"{key}={value}\r\n" for key, value in found.items())
        for name, found in sections.items()
    )
    path.write_bytes(text.encode("utf-16"))
    return path


def write_ims(path, values, pixel_um, names=(), pad=3):
    """Write values (t, c, z, y, x) as an Imaris file whose arrays are larger by `pad`."""

    def letters(text):
        return np.frombuffer(str(text).encode(), "S1")

    with h5py.File(path, "w") as file:
        for t, c in np.ndindex(values.shape[:2]):
            group = file.create_group(f"DataSet/ResolutionLevel 0/TimePoint {t}/Channel {c}")
            padded = np.pad(values[t, c], [(0, pad)] * 3)
            group.create_dataset("Data", data=padded, chunks=(2, 8, 8), compression="gzip")
            for axis, n in zip("ZYX", values.shape[2:], strict=True):
                group.attrs[f"ImageSize{axis}"] = letters(n)
        about = file.create_group("DataSetInfo/Image")
        about.attrs["Unit"] = letters("um")
        for k, (um, n) in enumerate(zip(pixel_um[::-1], values.shape[:1:-1], strict=True)):
            about.attrs[f"ExtMin{k}"] = letters(10)
            about.attrs[f"ExtMax{k}"] = letters(10 + um * n)
        for k, name in enumerate(names):
            file.create_group(f"DataSetInfo/Channel {k}").attrs["Name"] = letters(name)
    return path


def write_nd2(path, values, pixel_um, names):
    """Write values (p, z, c, y, x), uint16, as an ND2 of positions; pixel sizes z and y, x."""
    p, z, c, y, x = values.shape
    spectrum = {"m_ExcitationSpectrum": {"uiCount": 0}, "m_EmissionSpectrum": {"uiCount": 0}}
    attributes = {
        "uiWidth": x,
        "uiWidthBytes": 2 * x * c,
        "uiHeight": y,
        "uiComp": c,
        "uiBpcInMemory": 16,
        "uiBpcSignificant": 16,
        "uiSequenceCount": p * z,
        "eCompression": 2,
    }
    planes = {
        f"a{k}": {"uiCompCount": 1, "sDescription": name, "pFluorescentProbe": spectrum}
        for k, name in enumerate(names)
    }
    picture = {
        "dCalibration": pixel_um[1],
        "bCalibrated": True,
        "dAspect": 1.0,
        "sPicturePlanes": {"uiCount": c, "sPlaneNew": planes},
    }
    stack = {"eType": 4, "uLoopPars": {"uiCount": z, "dZStep": pixel_um[0]}}
    points = {f"i{k:010}": {"dPosX": float(k), "dPosY": 0.0, "dPosZ": 0.0} for k in range(p)}
    loops = {
        "eType": 2,
        "uLoopPars": {"uiCount": p, "Points": points},
        "ppNextLevelEx": {"i0000000000": stack},
    }
    chunks = {
        "ImageAttributesLV!": _variant({"SLxImageAttributes": attributes}),
        "ImageMetadataSeqLV|0!": _variant({"SLxPictureMetadata": picture}),
        "ImageMetadataLV!": _variant({"SLxExperiment": loops}),
    }
    for k, frame in enumerate(values.reshape(-1, c, y, x)):
        content = np.ascontiguousarray(frame.transpose(1, 2, 0), "<u2").tobytes()
        chunks[f"ImageDataSeq|{k}!"] = struct.pack("<d", k) + content
    out = _chunk(b"ND2 FILE SIGNATURE CHUNK NAME01!", b"Ver3.0".ljust(64, b"\0"))
    table = b""
    for name, content in chunks.items():
        table += name.encode() + struct.pack("<QQ", len(out), len(content))
        out += _chunk(name.encode().ljust(4072, b"\0"), content)
    end = b"ND2 CHUNK MAP SIGNATURE 0000001!"
    table += end + struct.pack("<QQ", len(out), 0)
    last = end + struct.pack("<Q", len(out))
    path.write_bytes(out + _chunk(b"ND2 FILEMAP SIGNATURE NAME 0001!", table) + last)
    return path


def _chunk(name, content):
    return struct.pack("<IIQ", 0x0ABECEDA, len(name), len(content)) + name + content


def _variant(fields):
    """Return nested names and values as ND2 stores them ("lite variant")."""
    out = b""
    for name, value in fields.items():
        head = name.encode("utf-16-le") + b"\0\0"
        if isinstance(value, dict):
            inner = _variant(value)
            size = 2 + len(head) + 12 + len(inner)
            kind = 11
            body = struct.pack("<IQ", len(value), size) + inner + bytes(8 * len(value))
        elif isinstance(value, bool):
            kind, body = 1, struct.pack("B", value)
        elif isinstance(value, int):
            kind, body = 3, struct.pack("<I", value)
        elif isinstance(value, float):
            kind, body = 6, struct.pack("<d", value)
        else:
            kind, body = 8, value.encode("utf-16-le") + b"\0\0"
        out += struct.pack("BB", kind, len(name) + 1) + head + body
    return out
