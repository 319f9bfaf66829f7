"""What pages get from elsewhere: the registered methods, names of the API reference, plots of the benchmarks."""

from __future__ import annotations

import importlib
import re
import sys
import zlib
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
# A class or function of the reference, and a namespace without what is in it.
OBJECT, NAMESPACE = "::: {}\n", "::: {}\n    options: {{members: false, show_root_heading: false}}\n"


def on_config(config):
    """What pages are made from can be imported; MkDocs takes back what a hook does to the path when it is loaded."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    return config


def on_files(files, config):
    """The plots of the benchmarks lie beside the pages of results."""
    for plot in sorted((ROOT / "examples/benchmarks/results").glob("*.png")):
        files.append(File.generated(config, f"results/{plot.name}", abs_src_path=str(plot)))
    return files


def on_page_markdown(markdown, **kwargs):
    """Put tables and names where pages ask for them."""
    markdown = re.sub(r"^<!-- names: ([\w.]+) -->$", lambda found: reference(found[1]), markdown, flags=re.M)
    markdown = re.sub(r"^<!-- devices -->$", lambda _: device_table(), markdown, flags=re.M)
    return re.sub(r"^<!-- methods -->$", lambda _: method_table(), markdown, flags=re.M)


def on_post_build(config):
    """Every public name is on a page."""
    from public_surface import public_paths

    listed = inventory(Path(config["site_dir"], "objects.inv").read_bytes())
    if missing := sorted(public_paths() - listed):
        raise PluginError(f"not in the API reference: {', '.join(missing)}. Write `::: NAME` on a page of docs/api.")


def inventory(content):
    """Names in an inventory of Sphinx' kind."""
    *_, packed = content.split(b"\n", 4)
    return {line.split(" ", 1)[0] for line in zlib.decompress(packed).decode().splitlines()}


def reference(name):
    """A module and everything public in it, in the order of its source."""
    from public_surface import exported

    module = importlib.import_module(name)
    names = getattr(module, "__all__", None) or exported(module)
    return "\n".join([NAMESPACE.format(name), *(OBJECT.format(f"{name}.{entry}") for entry in names)])


def method_table():
    """The registered methods, and the parts that each is made of."""
    import keras_filterprune as kfp
    from keras_filterprune.methods import as_method

    columns = ("method", "needs", "what it ranks filters by", "criterion", "widths", "makes up by")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, needs, what in kfp.list_methods():
        parts = as_method(name, 0, True)
        made_of = {"criteria": parts.criterion, "allocators": parts.allocator, "compensators": parts.compensator}
        links = (link(space, type(part).__name__) for space, part in made_of.items())
        lines.append(" | ".join([f"| `{name}`", needs, what, *links]) + " |")
    return "\n".join(lines)


def device_table():
    """The devices that files are made for by name."""
    from keras_filterprune.compression import list_devices

    lines = ["| target | processor | widths | numbers, or else | known by |", "|---|---|---|---|---|"]
    for name, device in list_devices().items():
        cells = f"`{name}`", device.chip, str(device.widths), f"{device.quantize}, {device.otherwise}", device.source
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def link(space, name):
    """A part of a method, linked to its place in the reference."""
    return f"[{name}](api/{space}.md#keras_filterprune.{space}.{name})"
