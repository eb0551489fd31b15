"""What a file is that holds no weights, in words, and what to do about it."""

import re

# The beginning of a file, what it is, and what helps.
_OTHERS = [
    (rb"\Z", "empty", "download or copy it again"),
    (
        rb"\s*<",
        "a web page",
        "download the file itself, whose address may need `raw`, `resolve` or a login",
    ),
    (rb"version https://git-lfs", "a pointer of git-lfs", "`git lfs pull` brings the file itself"),
    (
        rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!|.{257}ustar",
        "a tar or other archive",
        "unpack it, and name the weight file in it",
    ),
    (
        rb"\x89HDF|\x08.\x12.{1,3}(pytorch|tf|onnx|keras)|GGUF",
        "of Keras, ONNX or GGUF",
        "take the weights of PyTorch, or as .safetensors",
    ),
    (rb"\x93NUMPY|\xff\xd8\xff|\x89PNG|GIF8|RIFF|%PDF", "an array, image or document", ""),
    # JSON, a message of a server; the oldest pickles begin in brackets or with a c
    (rb"[^](}c][\t\r\n -~\x80-\xff]*\Z", "text", ""),
]


def what_it_is(head: bytes) -> str:
    """A sentence on a file that begins like this; empty where that tells nothing."""
    for pattern, words, advice in _OTHERS:
        if re.match(pattern, head, re.DOTALL):
            begins = f" ({head[:40].decode(errors='replace')!r} ...)" if words == "text" else ""
            what = f"it is {words}{begins}, neither a torch file nor a whole pickle"
            return f"{what}; {advice or 'name the weight file itself'}"
    return ""


def what_zip_it_is(names: list[str]) -> str:
    """The same of a zip archive of these files; empty where it is torch's of weights."""
    if any(name.endswith("/constants.pkl") for name in names):
        return (
            "it is TorchScript, which is a program; load it with torch.jit.load where you trust "
            "it, and save its state_dict()"
        )
    if any(name.endswith("data.pkl") for name in names):
        return ""
    return f"it is a zip archive of {names[:5]}; unpack it, and name the weight file in it"
