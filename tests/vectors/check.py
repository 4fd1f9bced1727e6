#!/usr/bin/env python3
"""Computes every known answer a second time, from docs/PROTOCOL.md alone, and compares.

Shares no code with the Rust crates. Needs Python 3.9 and two packages: pip install cryptography cbor2

    check.py            checks every vector, and the worked example in docs/PROTOCOL.md
    check.py --example  prints the worked example

Section numbers are those of docs/PROTOCOL.md.
"""

import hashlib
import hmac
import json
import sys
import uuid
from pathlib import Path

import cbor2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

VECTORS = Path(__file__).resolve().parent
PROTOCOL = VECTORS.parent.parent / "docs" / "PROTOCOL.md"
VERSION = b"\x01"
NO_NONCE = b""


# 2 Notation


def cbor(*items):
    return cbor2.dumps(list(items), canonical=True)


def cbor_map(entries):
    return cbor2.dumps(entries, canonical=True)


def mac(key, message):
    return hmac.new(key, message, hashlib.sha256).digest()


def extract(salt, key_material):
    return mac(salt, key_material)


def expand(key, info, length):
    out, block, number = b"", b"", 1
    while len(out) < length:
        block = mac(key, block + info + bytes([number]))
        out, number = out + block, number + 1
    return out[:length]


def ident(text):
    return uuid.UUID(text).bytes


def key_epoch(text):
    incarnation, counter = text.split(".")
    return (int(incarnation) << 32) | int(counter)


SUITES = {1: (AESGCM, 1, 16), 3: (ChaCha20Poly1305, 24, 32), 77: (ChaCha20Poly1305, 24, 32)}


def aead(suite, key):
    return SUITES[suite][0](key)


# 9 Key schedule


def public_key(seed):
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def x25519(own_seed, others_public_key):
    private = X25519PrivateKey.from_private_bytes(hashlib.sha512(own_seed).digest()[:32])
    p = 2**255 - 19
    y = int.from_bytes(others_public_key, "little") & (2**255 - 1)
    u = (1 + y) * pow(1 - y, -1, p) % p
    return private.exchange(X25519PublicKey.from_public_bytes(u.to_bytes(32, "little")))


def pairwise_key(fleet, device, shared):
    return extract(cbor("fleetkey pairwise", fleet, device), shared)


def link_key(pairwise):
    return expand(pairwise, cbor("fleetkey link"), 32)


def confirm_key(pairwise, secret):
    return expand(extract(secret, pairwise), cbor("fleetkey confirm"), 32)


def commitment(secret, group, epoch):
    return expand(secret, cbor("fleetkey commitment", group, epoch), 32)


def app_key(secret, label, context, length):
    return expand(secret, cbor("fleetkey app", label, context, length), length)


def psk_id(psk):
    return expand(psk, cbor("fleetkey psk id"), 16)


def wrap_key(kek, digest, suite):
    return expand(kek, cbor("fleetkey wrap", digest), SUITES[suite][2])


def sealing_key(secret, sender, salt, suite):
    length = SUITES[suite][2]
    return expand(secret, cbor("fleetkey sealed", sender, salt, length), length)


# 6 and 7 Frames


def cell_frame(epoch, covered, commit, statement, wrap):
    return VERSION + cbor(epoch, covered, commit, statement, wrap)


def link_frame(key, direction, device_nonce, coordinator_nonce, counter, body):
    tag = mac(key, cbor(direction, device_nonce, coordinator_nonce, counter, body))[:16]
    return VERSION + cbor(device_nonce, coordinator_nonce, counter, body, tag)


def coordinator_nonce(start_secret, device, device_nonce, session):
    return mac(start_secret, cbor(device, device_nonce, session))[:8]


# 8 Bodies


def up_body(f):
    kind = f["kind"]
    if kind == "hello":
        cells = [
            [
                ident(c["cell"]),
                c["cell_epoch"],
                unhex(c["authenticator"]),
                unhex(c["statement"]),
                key_epoch(c["key_epoch"]),
                key_epoch(c["send"]),
                key_epoch(c["oldest"]),
            ]
            for c in f["cells"]
        ]
        return cbor(0, f["generation"], cells)
    if kind == "key_packages":
        return cbor(1, f["suite"], [unhex(p) for p in f["packages"]])
    if kind == "confirm":
        return cbor(2, ident(f["group"]), key_epoch(f["key_epoch"]), unhex(f["statement"]), unhex(f["proof"]))
    if kind == "update":
        return cbor(3, ident(f["cell"]), f["cell_epoch"], unhex(f["proposal"]))
    if kind == "leave":
        return cbor(4, ident(f["group"]))
    if kind == "evidence":
        return cbor(5, unhex(f["statement"]))
    if kind == "psks":
        return cbor(6, [unhex(held) for held in f["held"]])
    raise ValueError(kind)


def down_body(f):
    kind = f["kind"]
    if kind == "hello_again":
        return cbor(0)
    if kind == "answer":
        return cbor(1, f["hello"], f["hello_interval_seconds"], f["max_silence_seconds"])
    if kind == "cell_frame":
        return cbor(2, ident(f["cell"]), unhex(f["frame"]))
    if kind == "welcome":
        statements = [[unhex(s["statement"]), unhex(s["wrap"])] for s in f["statements"]]
        return cbor(
            3,
            ident(f["group"]),
            f["group_name"],
            ident(f["cell"]),
            f["suite"],
            f["cell_epoch"],
            unhex(f["welcome"]),
            statements,
        )
    if kind == "request_key_packages":
        return cbor(4, f["suite"], f["count"])
    if kind == "request_update":
        return cbor(5, ident(f["cell"]))
    if kind == "dismiss":
        return cbor(6, ident(f["group"]), ident(f["cell"]), ["evicted", "not_a_member"].index(f["reason"]))
    if kind == "certificate":
        return cbor(7, [unhex(c) for c in f["chain"]])
    if kind == "request_evidence":
        return cbor(8, ident(f["group"]))
    if kind == "request_hello":
        return cbor(9)
    raise ValueError(kind)


# 10 Statement, wrap, confirmation


def key_id(certificate):
    return hashlib.sha256(certificate).digest()[:8]


def sign1(key, protected, external_aad, payload):
    signature = key.sign(cbor("Signature1", protected, external_aad, payload))
    key.public_key().verify(signature, cbor("Signature1", protected, external_aad, payload))
    return cbor(protected, {}, payload, signature)


def statement_payload(f):
    return cbor(
        1,
        ident(f["group"]),
        key_epoch(f["key_epoch"]),
        unhex(f["commitment"]),
        f["reason"],
        key_epoch(f["send"]),
        key_epoch(f["oldest"]),
        f["overlap_seconds"],
        f["issued_unix_seconds"],
    )


def statement(f):
    key = Ed25519PrivateKey.from_private_bytes(unhex(f["coordinator_seed"]))
    protected = cbor_map({1: -8, 4: key_id(unhex(f["certificate"]))})
    return sign1(key, protected, cbor("fleetkey statement", ident(f["fleet"])), statement_payload(f))


def encrypt0(suite, key, nonce, protected, external_aad, plaintext):
    aad = cbor("Encrypt0", protected, external_aad)
    ciphertext = aead(suite, key).encrypt(nonce, plaintext, aad)
    assert aead(suite, key).decrypt(nonce, ciphertext, aad) == plaintext
    return cbor(protected, {}, ciphertext)


def wrap(f):
    payload = cbor2.loads(unhex(f["statement"]))[2]
    digest = hashlib.sha256(payload).digest()
    group, epoch, committed = cbor2.loads(payload)[1:4]
    secret, suite = unhex(f["group_secret"]), f["suite"]
    assert commitment(secret, group, epoch) == committed
    external_aad = cbor("fleetkey wrap", ident(f["fleet"]), group, ident(f["cell"]), f["cell_epoch"], digest)
    key = wrap_key(unhex(f["kek"]), digest, suite)
    return encrypt0(suite, key, bytes(12), cbor_map({1: SUITES[suite][1]}), external_aad, secret)


def proof(f):
    key = confirm_key(unhex(f["pairwise"]), unhex(f["group_secret"]))
    message = cbor(
        ident(f["fleet"]),
        ident(f["group"]),
        key_epoch(f["key_epoch"]),
        unhex(f["commitment"]),
        ident(f["device"]),
    )
    return mac(key, message)


# 11 Sealed payloads


def sealed(f):
    suite, group, epoch = f["suite"], ident(f["group"]), key_epoch(f["key_epoch"])
    sender, salt, counter = ident(f["sender"]), unhex(f["salt"]), f["counter"]
    context, plaintext = unhex(f["context"]), unhex(f["plaintext"])
    if f["signer_seed"] is not None:
        signer = Ed25519PrivateKey.from_private_bytes(unhex(f["signer_seed"]))
        external_aad = cbor("fleetkey signed", group, epoch, sender, salt, counter, context)
        plaintext = sign1(signer, cbor_map({1: -8}), external_aad, plaintext)
    partial_iv = counter.to_bytes(max(1, (counter.bit_length() + 7) // 8), "big")
    header = {
        1: SUITES[suite][1],
        4: group + epoch.to_bytes(8, "big"),
        6: partial_iv,
        -70001: sender,
        -70002: salt,
    }
    if f["signer_seed"] is not None:
        header[3] = 18
    key = sealing_key(unhex(f["group_secret"]), sender, salt, suite)
    nonce = partial_iv.rjust(12, b"\0")
    return encrypt0(suite, key, nonce, cbor_map(header), cbor("fleetkey sealed", context), plaintext)


# The vectors, file by file


def unhex(text):
    return None if text is None else bytes.fromhex(text)


def outputs_of_keys(f):
    fleet, device, group = ident(f["fleet"]), ident(f["device"]), ident(f["group"])
    coordinator, own = unhex(f["coordinator_seed"]), unhex(f["device_seed"])
    secret = unhex(f["group_secret"])
    shared = x25519(own, public_key(coordinator))
    assert shared == x25519(coordinator, public_key(own)) and any(shared)
    pairwise = pairwise_key(fleet, device, shared)
    return {
        "coordinator_public_key": public_key(coordinator),
        "device_public_key": public_key(own),
        "pairwise": pairwise,
        "link_key": link_key(pairwise),
        "confirm_key": confirm_key(pairwise, secret),
        "commitment": commitment(secret, group, key_epoch(f["key_epoch"])),
        "app_key": app_key(secret, f["app_label"], unhex(f["app_context"]), f["app_length"]),
    }


def outputs_of_statement(f):
    return {
        "key_id": key_id(unhex(f["certificate"])),
        "digest": hashlib.sha256(statement_payload(f)).digest(),
        "statement": statement(f),
    }


def outputs_of_cell_frame(f):
    covered = [unhex(update) for update in f["covered_updates"]]
    commit, said, wrapped = (unhex(f[name]) for name in ("commit", "statement", "wrap"))
    return {"frame": cell_frame(f["cell_epoch"], covered, commit, said, wrapped)}


def outputs_of_bodies(f):
    return {"body": {"up": up_body, "down": down_body}[f["direction"]](f)}


def outputs_of_link(f):
    """Plays both ends, as far as frames depend on it (7)."""
    device, key, start = ident(f["device"]), unhex(f["link_key"]), unhex(f["start_secret"])
    frames = []
    own = peer = greeted = proven = None
    device_sent = coordinator_sent = session = 0
    for step in f["steps"]:
        if step["step"] == "connect":
            own, peer, device_sent = unhex(step["device_nonce"]), None, 0
        elif step["step"] == "up":
            device_sent += 1
            frames.append(link_frame(key, "up", own, peer or NO_NONCE, device_sent, up_body(step)))
            if peer is None:
                greeted = own
            elif proven != own:
                assert peer == coordinator_nonce(start, device, own, session + 1)
                proven, greeted, session = own, None, session + 1
        else:
            coordinator_sent += 1
            if greeted is not None:
                to, nonce = greeted, coordinator_nonce(start, device, greeted, session + 1)
            elif proven is not None:
                to, nonce = proven, coordinator_nonce(start, device, proven, session)
            else:
                to, nonce = NO_NONCE, coordinator_nonce(start, device, bytes(8), 0)
            frames.append(link_frame(key, "down", to, nonce, coordinator_sent, down_body(step)))
            if to == own:
                peer = nonce
    return {"frames": frames}


FILES = {
    "keys": outputs_of_keys,
    "statement": outputs_of_statement,
    "wrap": lambda f: {"wrap": wrap(f)},
    "confirmation": lambda f: {"proof": proof(f)},
    "cell-frame": outputs_of_cell_frame,
    "bodies": outputs_of_bodies,
    "link": outputs_of_link,
    "sealed": lambda f: {"sealed": sealed(f)},
    "psk": lambda f: {"id": psk_id(unhex(f["file"]))},
}


def load(name):
    return json.loads((VECTORS / f"{name}.json").read_text())["vectors"]


def as_hex(value):
    if isinstance(value, bytes):
        return value.hex()
    return [as_hex(item) for item in value] if isinstance(value, list) else value


# 15 Worked example


def example():
    """The lines of the worked example: names, and values or None for a comment."""
    keys, said = load("keys")[0]["inputs"], load("statement")[0]["inputs"]
    wrapped, proven = load("wrap")[0]["inputs"], load("confirmation")[0]["inputs"]
    message, talk = load("sealed")[0]["inputs"], load("link")[0]["inputs"]
    signed = load("sealed")[2]["inputs"]
    frames = outputs_of_link(talk)["frames"]
    fleet, group, device = ident(keys["fleet"]), ident(keys["group"]), ident(keys["device"])
    cell = ident(wrapped["cell"])
    shared = x25519(unhex(keys["device_seed"]), public_key(unhex(keys["coordinator_seed"])))
    derived = outputs_of_keys(keys)
    secret, suite = unhex(keys["group_secret"]), wrapped["suite"]
    payload = statement_payload(said)
    digest = hashlib.sha256(payload).digest()
    protected = cbor_map({1: -8, 4: key_id(unhex(said["certificate"]))})
    the_wrap = wrap(wrapped)
    to_confirm = cbor(fleet, group, key_epoch(keys["key_epoch"]), derived["commitment"], device)
    confirm = next(step for step in talk["steps"] if step.get("kind") == "confirm")
    first = frames[0]
    return [
        ("Inputs; the key epoch is " + keys["key_epoch"] + ", the suite 1", None),
        ("fleet", fleet),
        ("group", group),
        ("cell", cell),
        ("device", device),
        ("key epoch", key_epoch(keys["key_epoch"]).to_bytes(8, "big")),
        ("coordinator's seed", unhex(keys["coordinator_seed"])),
        ("device's seed", unhex(keys["device_seed"])),
        ("group secret", secret),
        ("KEK at cell epoch 42", unhex(wrapped["kek"])),
        ("Key schedule (9)", None),
        ("coordinator's public key", derived["coordinator_public_key"]),
        ("device's public key", derived["device_public_key"]),
        ("exporter context", cbor(fleet, group, cell)),
        ("shared", shared),
        ("pairwise salt", cbor("fleetkey pairwise", fleet, device)),
        ("pairwise", derived["pairwise"]),
        ("link key", derived["link_key"]),
        ("confirm key", derived["confirm_key"]),
        ("commitment info", cbor("fleetkey commitment", group, key_epoch(keys["key_epoch"]))),
        ("commitment", derived["commitment"]),
        ('app key ("telemetry", h\'\', 32)', derived["app_key"]),
        ("Statement (10): a revocation, overlap 0, issued at 1763035200", None),
        ("certificate", unhex(said["certificate"])),
        ("key id", key_id(unhex(said["certificate"]))),
        ("statement protected", protected),
        ("statement external aad", cbor("fleetkey statement", fleet)),
        ("statement payload", payload),
        ("statement digest", digest),
        ("statement", statement(said)),
        ("Wrap (10)", None),
        ("wrap key", wrap_key(unhex(wrapped["kek"]), digest, suite)),
        ("wrap external aad", cbor("fleetkey wrap", fleet, group, cell, 42, digest)),
        ("wrap", the_wrap),
        ("Cell frame (6): both of them, at cell epoch 42", None),
        ("cell frame", cell_frame(42, [], None, statement(said), the_wrap)),
        ("Confirmation (10)", None),
        ("confirmed", to_confirm),
        ("proof", proof(proven)),
        ("Link (7): a hello without cells, its answer, and, after some more, the confirmation", None),
        ("device nonce", cbor2.loads(first[1:])[0]),
        ("first hello", first),
        ("first hello's MAC input", cbor("up", cbor2.loads(first[1:])[0], b"", 1, cbor2.loads(first[1:])[3])),
        ("answer", frames[1]),
        ("confirmation body", up_body(confirm)),
        ("confirmation frame", frames[-1]),
        ('Sealed payload (11): "open valve 3", context h\'\', counter 0', None),
        ("salt", unhex(message["salt"])),
        ("sealing key", sealing_key(secret, device, unhex(message["salt"]), 1)),
        ("sealed", sealed(message)),
        ('The same, signed, with the context "valves"', None),
        ("sealed and signed", sealed(signed)),
    ]


def render(lines):
    out = []
    for name, value in lines:
        if value is None:
            out += ([""] if out else []) + [f"# {name}"]
        else:
            text = value.hex()
            rows = [text[at : at + 88] for at in range(0, len(text), 88)]
            out += [f"{name} =", *("  " + row for row in rows)] if len(rows) > 1 else [f"{name} = {text}"]
    return "\n".join(out)


def main():
    if sys.argv[1:] == ["--example"]:
        print(render(example()))
        return 0
    wrong = checked = 0
    for name, compute in FILES.items():
        for vector in load(name):
            checked += 1
            computed = {key: as_hex(value) for key, value in compute(vector["inputs"]).items()}
            if computed != vector["outputs"]:
                wrong += 1
                print(f"{name}: {vector['name']}: computed {computed}", file=sys.stderr)
    if {path.stem for path in VECTORS.glob("*.json")} != set(FILES):
        wrong += 1
        print("there are vectors that nothing checks", file=sys.stderr)
    if f"```vectors\n{render(example())}\n```" not in PROTOCOL.read_text():
        wrong += 1
        print("the worked example in docs/PROTOCOL.md is not what --example prints", file=sys.stderr)
    print(f"{checked} vectors computed anew, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
