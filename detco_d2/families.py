"""The loss families of equation 1, and the views that they read."""

# Which view asks (query), and which view gives the positive key and owns the queue of negatives.
FAMILIES: dict[str, tuple[str, str]] = {
    "gg": ("global", "global"),  # eq. 2
    "gl": ("local", "global"),  # eq. 4: one direction only, a local query and a global key
    "ll": ("local", "local"),  # eq. 5
}


def required_views(families: list[str]) -> list[str]:
    """The views that these loss families read, in a fixed order.

    >>> required_views(["gg"])
    ['global_query', 'global_key']
    """
    needed = {f"{FAMILIES[family][0]}_query" for family in families}
    needed |= {f"{FAMILIES[family][1]}_key" for family in families}
    order = ["global_query", "global_key", "local_query", "local_key"]
    return [view for view in order if view in needed]
