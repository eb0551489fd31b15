"""What a refused weight file asked for, in words."""

import io
import pickletools
import re

_HARMLESS = ("torch.", "collections.OrderedDict", "_codecs.encode")


def asks_for(name: str) -> str:
    return f"it asks for {name}, which no array of weights needs"


def what_torch_refused(message: str, pickles: bytes) -> str:
    """
    Args:
        message: of torch's error.
        pickles: the instructions in the file.
    """
    found = re.search(r"GLOBAL (\S+)", message)
    if found:  # torch leaves out "builtins."
        return asks_for(found[1] if "." in found[1] else f"builtins.{found[1]}")
    # it stopped at an instruction before
    names = [name for name in _globals(pickles) if not name.startswith(_HARMLESS)]
    if names:
        return asks_for(", ".join(names[:3]))
    # its last words on the file itself, without its advice
    message = message.split("WeightsUnpickler error:")[-1].replace("Weights only load failed.", "")
    return re.split(r"In PyTorch 2\.6|Check the documentation", message)[0].strip(" .")


def _globals(pickles: bytes) -> list[str]:
    """What pickles, one behind the other, ask for by name; as far as they can be read."""
    found: list[str] = []
    strings: list[str] = []
    stream = io.BytesIO(pickles)
    try:
        while stream.tell() < len(pickles):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    found.append(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    found.append(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    except Exception:  # the tensors behind the pickles, or rubbish
        pass
    return found
