"""A network of replicas in memory, with faults: `kvd.replicas.peers.interfaces.Network` for tests.

A link is two queues of messages, as bytes. What one side has sent arrives in its order after a
delay; when a link ends, each side still gets some of the messages that were in flight, and then
its end: as with TCP, where no side knows what the other has read. What is held for a side that is
frozen is read after its thaw, though the other side may have gone long before.
"""

import asyncio
from collections import deque
from random import Random

import cbor2

from kvd.replicas.links import MESSAGES, LinkError, LinkRefused


class MemoryLink:
    """One side of a link."""

    def __init__(self, network, name, peer):
        self.network = network
        self.name = name
        self.peer = peer
        self.other = None
        self.received = deque()
        self.is_closed = False
        self.is_ended = False
        self._in_flight = deque()
        self._is_cut = False
        self._arrives_at = 0.0
        self._news = asyncio.Event()

    def send(self, name, *fields):
        assert [type(field) for field in fields] == list(MESSAGES[name]), (name, fields)
        if self.is_closed or self._is_cut:
            raise LinkError("the link has ended")
        self.other.carry(cbor2.dumps([name, *fields]))

    def carry(self, message):
        """Take a message that arrives later, after those before it."""
        network = self.network
        loop = asyncio.get_running_loop()
        delay_s = network.random.uniform(*network.delay_s)
        self._arrives_at = max(self._arrives_at, loop.time() + delay_s)
        self._in_flight.append(message)
        loop.call_at(self._arrives_at, self._arrive)

    @property
    def is_held(self):
        return self.network.is_held(self.name, self.other.name)

    def _arrive(self):
        if self._in_flight and not self.is_held:
            self.received.append(self._in_flight.popleft())
            self._news.set()

    def release(self):
        """Let arrive what was held."""
        self.received += self._in_flight
        self._in_flight.clear()
        self._news.set()
        if self._is_cut:
            self._end()

    def cut(self):
        """End this side, which still gets some of what was in flight."""
        if self.is_ended:
            return
        self._is_cut = True
        if self.is_held:
            return
        for _ in range(self.network.random.randint(0, len(self._in_flight))):
            self.received.append(self._in_flight.popleft())
        self._end()

    def _end(self):
        self._in_flight.clear()
        self.is_ended = True
        self.network.links.pop(self, None)
        self._news.set()

    async def receive(self):
        while not self.received:
            if self.is_closed or self.is_ended:
                self.close()
                raise LinkError("the link has ended")
            self._news.clear()
            await self._news.wait()
        if self.is_closed:
            raise LinkError("the link has ended")
        name, *fields = cbor2.loads(self.received.popleft())
        return name, fields

    async def drain(self):
        await asyncio.sleep(0)

    def close(self):
        if not self.is_closed:
            self.is_closed = True
            self.network.links.pop(self, None)
            self._news.set()
            self.other.cut()


class MemoryNetwork:
    """The part that all replicas share.

    Attributes:
        delay_s: The least and the most that a message takes.
    """

    def __init__(self, random=None):
        self.random = random or Random(0)
        self.delay_s = (0.0, 0.0)
        self.links = {}
        self.listening = {}
        self._parted = set()

    def place(self, hello, name):
        return Place(self, hello, name)

    def is_held(self, one, other):
        return one in self._parted or other in self._parted

    def part(self, name):
        """Hold all messages from and to a replica until `heal`."""
        self._parted.add(name)

    def heal(self, name):
        self._parted.discard(name)
        for side in self._of(name):
            if not side.is_held:
                side.release()

    def cut(self, name):
        """End the links of a replica."""
        for side in self._of(name):
            side.cut()

    def _of(self, name):
        """Both sides of its links, in the order in which they were made."""
        return [side for side in (*self.links,) if name in (side.name, side.other.name)]


class Place:
    """One replica's way to the network: its name is also its URL."""

    def __init__(self, network, hello, name):
        self.network = network
        self.hello = hello
        self.name = name
        self._tasks = set()

    async def dial(self, url):
        network = self.network
        await asyncio.sleep(network.random.uniform(*network.delay_s))
        if network.is_held(self.name, url):
            await asyncio.sleep(5)
            raise LinkError("no link in 5 s")
        listening = network.listening.get(url)
        if listening is None:
            raise LinkRefused("nothing listens there")
        place, serve = listening
        own = MemoryLink(network, self.name, place.hello)
        theirs = MemoryLink(network, url, self.hello)
        own.other, theirs.other = theirs, own
        network.links.update(dict.fromkeys((own, theirs)))
        task = asyncio.create_task(serve(theirs))
        place._tasks.add(task)
        task.add_done_callback(place._tasks.discard)
        return own

    async def listen(self, urls, serve):
        for url in urls:
            self.network.listening[url] = (self, serve)

    async def close(self):
        self.die()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def die(self):
        """Listen no more, and end all links."""
        for url in [url for url, (place, _) in self.network.listening.items() if place is self]:
            del self.network.listening[url]
        for task in self._tasks:
            task.cancel()
        self.network.cut(self.name)
