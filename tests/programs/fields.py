"""Who owns which fields of an object, as server-side apply of Kubernetes has it.

What a manager applies is merged with what others have. What it does not apply any more is gone, unless
another owns it too. A field that another owns and has otherwise is a conflict, unless it is forced: then
the other owns it no more. A list is one field, but that of conditions has one for each type.
"""

import copy

SERVER = ("apiVersion", "kind", "metadata", "status")
WRITTEN = ("annotations", "labels", "ownerReferences")


class Conflict(Exception):
    pass


def part(thing, of_status):
    """What a request for an object, or for its status, is about."""
    if of_status:
        return {"status": thing["status"]} if thing.get("status") else {}
    metadata = {key: value for key, value in thing.get("metadata", {}).items() if key in WRITTEN}
    rest = {key: value for key, value in thing.items() if key not in SERVER}
    return {**rest, "metadata": metadata} if metadata else rest


def whole(old, fields, of_status):
    """The object that has these fields, and of `old` what a request is not about."""
    if of_status:
        return {**{key: value for key, value in old.items() if key != "status"}, **fields}
    kept = {key: value for key, value in old.items() if key in SERVER}
    metadata = {key: value for key, value in kept.get("metadata", {}).items() if key not in WRITTEN}
    return {**kept, **fields, "metadata": {**metadata, **fields.get("metadata", {})}}


def keyed(thing, name=None):
    """The object with a mapping for each list of conditions."""
    if isinstance(thing, dict):
        return {key: keyed(value, key) for key, value in thing.items()}
    if isinstance(thing, list) and name == "conditions":
        return {("type", item.get("type")): item for item in thing}
    return thing


def listed(thing):
    if isinstance(thing, dict):
        if thing and all(isinstance(key, tuple) for key in thing):
            return list(thing.values())
        return {key: listed(value) for key, value in thing.items()}
    return thing


def paths(thing, path=()):
    if isinstance(thing, dict) and thing:
        for key, value in thing.items():
            yield from paths(value, (*path, key))
    elif path:
        yield path


def at(thing, path):
    for step in path:
        if not isinstance(thing, dict) or step not in thing:
            return None
        thing = thing[step]
    return thing


def remove(thing, path):
    parent = at(thing, path[:-1])
    if isinstance(parent, dict):
        parent.pop(path[-1], None)
        if not parent and len(path) > 1:
            remove(thing, path[:-1])


def merge(old, new):
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            merge(old[key], value)
        else:
            old[key] = copy.deepcopy(value)


def applied(old, new, owners, manager, force):
    """The fields of `old` after `manager` has applied those of `new`; `owners` has the fields of each."""
    old, new = keyed(copy.deepcopy(old)), keyed(new)
    mine = set(paths(new))
    others = [(other, owned) for other, owned in owners.items() if other != manager]
    taken = {(other, path) for other, owned in others for path in mine & owned
             if at(old, path) != at(new, path)}
    if taken and not force:
        told = ", ".join(f'"{other[0]}": .{".".join(map(str, path))}' for other, path in sorted(taken, key=str))
        plural = "s" if len(taken) > 1 else ""
        raise Conflict(f"Apply failed with {len(taken)} conflict{plural}: conflict with {told}")
    for other, path in taken:
        owners[other].discard(path)
    for path in owners.get(manager, set()) - mine:
        if not any(path in owned for _, owned in others):
            remove(old, path)
    owners[manager] = mine
    merge(old, new)
    return listed(old)


def replaced(old, new, owners, manager):
    """The fields of `new`; those that differ from `old` have `manager` as their owner."""
    before, after = keyed(old), keyed(new)
    changed = {path for path in paths(after) if at(before, path) != at(after, path)}
    gone = set(paths(before)) - set(paths(after))
    for owned in owners.values():
        owned -= changed | gone
    owners[manager] = owners.get(manager, set()) | changed
    return new


def patched(old, patch):
    """A merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    old = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            old.pop(key, None)
        else:
            old[key] = patched(old.get(key), value)
    return old
