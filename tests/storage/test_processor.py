"""storage/processor.py: what /proc/cpuinfo says is understood, and what it does not say is no."""

import pytest

from kvd.storage import processor

X86 = """processor\t: 0
model name\t: a processor
flags\t\t: fpu sse2 {} avx2

processor\t: 1
"""
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd {}
CPU implementer\t: 0x41
"""


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (X86.format("sha_ni"), True),
        (X86.format("sha_nix"), False),
        (X86.format("ssse3"), False),
        (ARM.format("sha1 sha2 crc32"), True),
        (ARM.format("sha1 sha512"), False),
        ("", False),
        (None, False),
    ],
    ids=["x86", "another flag", "x86 without", "arm", "arm without", "nothing", "no such file"],
)
def test_instructions_for_sha256_are_known(tmp_path, monkeypatch, cpuinfo, expected):
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    assert processor.has_sha256() is expected
