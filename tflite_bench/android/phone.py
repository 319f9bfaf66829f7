"""What a phone says about itself: model, processor, Android version, heat."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from tflite_bench.android.adb import Phone

# Part numbers of Arm's own cores, which report implementer 0x41; others are shown as numbers.
_CORES = {
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0D: "Cortex-A77",
    0xD41: "Cortex-A78",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD48: "Cortex-X2",
    0xD4D: "Cortex-A715",
    0xD4E: "Cortex-X3",
    0xD80: "Cortex-A520",
    0xD81: "Cortex-A720",
    0xD82: "Cortex-X4",
}
# Values of Android's PowerManager.THERMAL_STATUS_*.
_THERMAL = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")


def phone_info(phone: Phone) -> dict[str, Any]:
    """Describe a phone.

    Args:
        phone: the phone.

    Returns:
        phone (maker and model), soc, cpu (its kinds of cores), cores, core_max_mhz (one per core, empty where the
        phone hides it), system (Android version) and abi. The serial number is left out.

    Raises:
        BenchError: the phone is gone.
    """
    properties = dict(re.findall(r"^\[(.*?)\]: \[(.*?)\]$", phone.shell("getprop").stdout, re.MULTILINE))

    def words(*names: str) -> str:
        return " ".join(properties[name] for name in names if properties.get(name))

    # Before Android 12 only the name of the board is there.
    soc = words("ro.soc.manufacturer", "ro.soc.model") or words("ro.board.platform") or "unknown SoC"
    cpuinfo = phone.shell("cat /proc/cpuinfo").stdout
    implementers = re.findall(r"CPU implementer\s*:\s*(\S+)", cpuinfo)
    parts = re.findall(r"CPU part\s*:\s*(\S+)", cpuinfo)
    kinds = Counter(_core_name(*pair) for pair in zip(implementers, parts, strict=False))
    clocks = phone.shell("cat /sys/devices/system/cpu/cpu[0-9]/cpufreq/cpuinfo_max_freq").stdout
    return {
        "phone": words("ro.product.manufacturer", "ro.product.model"),
        "soc": soc,
        "cpu": f"{soc}: {' + '.join(f'{count}x {kind}' for kind, count in kinds.items()) or 'unknown cores'}",
        "cores": len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)),
        "core_max_mhz": [int(clock) // 1000 for clock in clocks.split() if clock.isdigit()],
        "system": f"Android {words('ro.build.version.release')} (API {words('ro.build.version.sdk')})",
        "abi": words("ro.product.cpu.abi"),
    }


def thermal_status(phone: Phone) -> str | None:
    """Ask a phone how hot it is.

    Args:
        phone: the phone.

    Returns:
        none, light, moderate, severe, critical, emergency or shutdown; None where the phone does not tell (before
        Android 10).

    Raises:
        BenchError: the phone is gone.
    """
    found = re.search(r"Thermal Status: ([0-6])", phone.shell("dumpsys thermalservice").stdout)
    return _THERMAL[int(found[1])] if found else None


def _core_name(implementer: str, part: str) -> str:
    name = _CORES.get(int(part, 16)) if int(implementer, 16) == 0x41 else None
    return name or f"core {implementer}/{part}"
