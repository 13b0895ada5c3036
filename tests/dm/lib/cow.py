"""The persistent store of a snapshot, written from the description of the format; it shares no code
with the module.

    chunk 0              header: magic, valid, version, chunk size in sectors, 32 bits each; then
                         zeros
    chunk 1 + a * stride area a: records of two numbers of 64 bits, a chunk of the origin and the
                         chunk with its data
    every other chunk    data; exceptions use them in ascending order

All numbers are little-endian. A record whose second number is 0 ends the list; only a full area has
a successor.
"""

import struct

SECTOR = 512
MAGIC = 0x70416E53
HEADER = struct.Struct("<4I")
RECORD = struct.Struct("<2Q")


def per_area(size):
    """The number of records in an area, for chunks of `size` sectors."""
    return size * SECTOR // RECORD.size


def area_at(area, size):
    """The chunk of an area."""
    return 1 + area * (per_area(size) + 1)


def data_at(index, size):
    """The chunk of the index-th exception."""
    return 2 + index + index // per_area(size)


def is_metadata(chunk, size):
    return chunk % (per_area(size) + 1) == 1


def needed(exceptions, size):
    """The number of chunks that a device needs for so many exceptions. A full area must have a
    successor.
    """
    return data_at(exceptions, size)


def capacity(chunks, size):
    """The maximum number of exceptions that fit on a device."""
    count = chunks
    while count and needed(count, size) > chunks:
        count -= 1
    return count


def header(size, magic=MAGIC, valid=1, version=1):
    return HEADER.pack(magic, valid, version, size)


def numbered(olds, size):
    """Records of exceptions in the order of their creation."""
    return [(old, data_at(index, size)) for index, old in enumerate(olds)]


def scattered(olds, size, rng, spread=2):
    """Records of exceptions whose chunks are out of order and have gaps between them."""
    news = [data_at(index, size) for index in range(len(olds) * spread)]
    return list(zip(olds, rng.sample(news, len(olds))))


def metadata(size, records, **fields):
    """{chunk: bytes} of the header and all areas, including the empty one after a full one."""
    length, most = size * SECTOR, per_area(size)
    chunks = {0: header(size, **fields).ljust(length, b"\0")}
    for area in range(len(records) // most + 1):
        here = b"".join(RECORD.pack(*record) for record in records[area * most : (area + 1) * most])
        chunks[area_at(area, size)] = here.ljust(length, b"\0")
    return chunks


def put(device, size, chunks):
    """Writes chunks to a device, adjacent ones at once."""
    at = sorted(chunks)
    starts = [chunk for chunk in at if chunk - 1 not in chunks]
    ends = [chunk + 1 for chunk in at if chunk + 1 not in chunks]
    for start, end in zip(starts, ends):
        device.fill(b"".join(chunks[chunk] for chunk in range(start, end)), start * size)


def left(device, size, areas):
    """Which of the first areas have a record."""
    return [area for area in range(areas) if any(device.read(area_at(area, size) * size, size))]


class Damaged(AssertionError):
    """A store that must be refused."""


class Store:
    """What a store says, in an image or on a device, also if it is invalid."""

    def __init__(self, source):
        if isinstance(source, (bytes, bytearray)):
            self.sectors = len(source) // SECTOR
            read = lambda sector, count: bytes(source[sector * SECTOR : (sector + count) * SECTOR])
        else:
            self.sectors, read = source.sectors, source.read
        magic, self.valid, self.version, self.size = HEADER.unpack_from(read(0, 1))
        if magic != MAGIC or self.version != 1:
            raise Damaged("no header")
        self.chunks = self.sectors // self.size
        self.records = []  # all, in order
        self.tail = b""  # of the last area, after the record that ends the list
        self.area = 0
        while self._read_area(read):
            self.area += 1
        # Of several records with the same chunk of the COW device the first one counts, and of the
        # remaining ones the first with each chunk of the origin.
        self.taken, self.repeated = {}, []
        news = set()
        for old, new in self.records:
            if old in self.taken or new in news:
                self.repeated.append((old, new))
            else:
                self.taken[old] = new
            news.add(new)
        self.next = max((new + 1 for _, new in self.records), default=2)
        self.next += is_metadata(self.next, self.size)

    def _read_area(self, read):
        """Adds the records of the present area; returns whether it is full."""
        at = area_at(self.area, self.size)
        if at >= self.chunks:
            raise Damaged(f"area {self.area} is behind the end")
        block = read(at * self.size, self.size)
        for index, (old, new) in enumerate(RECORD.iter_unpack(block)):
            if not new:
                self.tail = block[(index + 1) * RECORD.size :]
                return False
            if is_metadata(new, self.size) or new >= self.chunks:
                raise Damaged(f"record {len(self.records)} puts chunk {old} at {new}")
            self.records.append((old, new))
        return True

    def status(self):
        """The status of the snapshot."""
        return f"{self.next * self.size}/{self.sectors} {(self.area + 2) * self.size}"


class Model:
    """The contents of a snapshot and of the devices below it, for I/O by one thread and a store
    that is not full.
    """

    def __init__(self, origin, image, size=8):
        """`image` is the content of the COW device. If it has no store, one with this chunk size is
        made.
        """
        self.origin, self.image = bytearray(origin), bytearray(image)
        self.shown = bytearray(origin)
        if any(image[:4]):
            store = Store(image)
            self.size, self.records, self.taken, self.next = (
                store.size,
                store.records,
                store.taken,
                store.next,
            )
            for old, new in self.taken.items():
                at, start = old * self.step, new * self.step
                count = len(self.shown[at : at + self.step])
                self.shown[at : at + count] = self.image[start : start + count]
        else:
            self.size, self.records, self.taken, self.next = size, [], {}, 2
            self._overlay(metadata(size, []))

    @property
    def step(self):
        return self.size * SECTOR

    def _overlay(self, chunks):
        for chunk, data in chunks.items():
            self.image[chunk * self.step : chunk * self.step + len(data)] = data

    def _take(self, chunk):
        """Makes an exception, unless there is one."""
        if chunk in self.taken:
            return
        new = self.taken[chunk] = self.next
        self.records.append((chunk, new))
        self.next += 2 if is_metadata(new + 1, self.size) else 1
        self._overlay({new: self.origin[chunk * self.step : (chunk + 1) * self.step]})
        most = per_area(self.size)
        area, index = divmod(len(self.records) - 1, most)
        at = area_at(area, self.size) * self.step + index * RECORD.size
        self.image[at : at + RECORD.size] = RECORD.pack(chunk, new)
        if index == most - 1:
            self._overlay({area_at(area + 1, self.size): bytes(self.step)})

    def _pieces(self, sector, data):
        """(chunk, offset in bytes, data) for each chunk that is touched."""
        done = 0
        while done < len(data):
            chunk, offset = divmod(sector * SECTOR + done, self.step)
            piece = data[done : done + self.step - offset]
            yield chunk, offset, piece
            done += len(piece)

    def write(self, sector, data):
        """Writes to the snapshot."""
        for chunk, offset, piece in self._pieces(sector, data):
            self._take(chunk)
            at = self.taken[chunk] * self.step + offset
            self.image[at : at + len(piece)] = piece
        self.shown[sector * SECTOR : sector * SECTOR + len(data)] = data

    def write_origin(self, sector, data):
        """Writes to the origin."""
        for chunk, _, _ in self._pieces(sector, data):
            self._take(chunk)
        self.origin[sector * SECTOR : sector * SECTOR + len(data)] = data

    def status(self):
        """The status of the snapshot."""
        areas = len(self.records) // per_area(self.size)
        return f"{self.next * self.size}/{len(self.image) // SECTOR} {(areas + 2) * self.size}"
