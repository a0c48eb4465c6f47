// Checks of node-etcd against a server, each of which leaves one line of JSON: {"check": NAME, "error": TEXT or null}.
//
//   node node_etcd.js DIRECTORY_OF_NODE_ETCD URL            every check below
//   node node_etcd.js DIRECTORY_OF_NODE_ETCD URL watcher    says what a watcher of /watched emits, until it is ended
'use strict';

const assert = require('assert');
const Etcd = require(process.argv[2]);

const url = process.argv[3];
const etcd = new Etcd(url);
const say = (what) => process.stdout.write(JSON.stringify(what) + '\n');

// Calls a method whose last argument is a callback; what it was called back with.
function call(method, ...args) {
  return new Promise((resolve) => etcd[method](...args, (error, body, headers) => resolve({ error, body, headers })));
}

async function succeeds(method, ...args) {
  const answer = await call(method, ...args);
  assert.ifError(answer.error);
  return answer.body;
}

async function refused(errorCode, method, ...args) {
  const { error } = await call(method, ...args);
  assert.ok(error, 'it is not refused');
  assert.strictEqual(error.errorCode, errorCode);
  return error;
}

const once = (emitter, event) => new Promise((resolve) => emitter.once(event, (...args) => resolve(args)));

const checks = {
  async setAndGet() {
    const written = await succeeds('set', '/n/key', 'a value & <more>');
    assert.strictEqual(written.action, 'set');
    assert.strictEqual((await succeeds('get', '/n/key')).node.value, 'a value & <more>');
    assert.strictEqual((await succeeds('set', '/n/key', '2')).prevNode.value, 'a value & <more>');
  },
  async valuesOfAllScripts() {
    const value = 'Grüße 你好 \u{1f600}\u2028';
    await succeeds('set', '/n/unicode', value);
    assert.strictEqual((await succeeds('get', '/n/unicode')).node.value, value);
  },
  async keysWithBlanksAndAccents() {
    await succeeds('set', '/n/with blank', '1');
    assert.strictEqual((await succeeds('get', '/n/with blank')).node.key, '/n/with blank');
    await succeeds('set', '/n/größe', '1');
    const keys = (await succeeds('get', '/n')).node.nodes.map((node) => node.key);
    assert.ok(keys.includes('/n/größe'), keys.join());
  },
  async aBadEncodingInATargetBreaksNothing() {
    // Its GETs send such characters as Latin-1, which is no UTF-8.
    await refused(100, 'get', '/n/größe');
    await succeeds('set', '/n/after', '1');
  },
  async missingKeys() {
    const error = await refused(100, 'get', '/n/missing');
    assert.strictEqual(error.error.cause, '/n/missing');
    assert.strictEqual(error.message, 'Key not found');
    await refused(100, 'del', '/n/missing');
  },
  async compareAndSwap() {
    await succeeds('set', '/n/cas', 'old');
    await refused(101, 'compareAndSwap', '/n/cas', 'new', 'other');
    assert.strictEqual((await succeeds('compareAndSwap', '/n/cas', 'new', 'old')).action, 'compareAndSwap');
    await refused(101, 'set', '/n/cas', 'x', { prevIndex: 1 });
    await refused(105, 'set', '/n/cas', 'x', { prevExist: false });
    await refused(100, 'set', '/n/none', 'x', { prevExist: true });
  },
  async compareAndDelete() {
    await succeeds('set', '/n/cad', 'old');
    await refused(101, 'compareAndDelete', '/n/cad', 'other');
    assert.strictEqual((await succeeds('compareAndDelete', '/n/cad', 'old')).action, 'compareAndDelete');
    await refused(201, 'compareAndDelete', '/n/cad', '');
  },
  async directories() {
    assert.strictEqual((await succeeds('mkdir', '/n/dir')).node.dir, true);
    await refused(102, 'mkdir', '/n/dir');
    await succeeds('set', '/n/dir/a/b', '1');
    await refused(102, 'set', '/n/dir', 'x');
    await refused(104, 'set', '/n/dir/a/b/c', 'x');
    await refused(108, 'rmdir', '/n/dir');
    await refused(102, 'del', '/n/dir');
    const tree = await succeeds('get', '/n/dir', { recursive: true });
    assert.strictEqual(tree.node.nodes[0].nodes[0].key, '/n/dir/a/b');
    assert.strictEqual((await succeeds('rmdir', '/n/dir', { recursive: true })).action, 'delete');
    await refused(107, 'del', '/', { recursive: true });
  },
  async inOrderKeys() {
    const first = await succeeds('create', '/n/queue', 'a');
    const second = await succeeds('create', '/n/queue', 'b');
    assert.ok(first.node.key < second.node.key);
    const listed = await succeeds('get', '/n/queue', { sorted: true });
    assert.deepStrictEqual(listed.node.nodes.map((node) => node.value), ['a', 'b']);
  },
  async timeToLive() {
    assert.strictEqual((await succeeds('set', '/n/ttl', 'x', { ttl: 100 })).node.ttl, 100);
    const changed = call('watch', '/n/short');
    await succeeds('set', '/n/short', 'x', { ttl: 1 });
    assert.strictEqual((await changed).body.action, 'set');
    assert.strictEqual((await call('watch', '/n/short')).body.action, 'expire');
    assert.strictEqual((await succeeds('set', '/n/ttl', 'x', { ttl: '' })).node.ttl, undefined);
    await refused(202, 'set', '/n/ttl', 'x', { ttl: 'soon' });
  },
  async hiddenKeys() {
    await succeeds('set', '/n/_hidden', 'x');
    const keys = (await succeeds('get', '/n')).node.nodes.map((node) => node.key);
    assert.ok(!keys.includes('/n/_hidden'));
    assert.strictEqual((await succeeds('get', '/n/_hidden')).node.value, 'x');
  },
  async watchFromAnIndex() {
    const written = await succeeds('set', '/n/past', '1');
    const found = await succeeds('watchIndex', '/n/past', written.node.modifiedIndex);
    assert.deepStrictEqual(found.node, written.node);
  },
  async anIndexThatIsNoNumber() {
    await refused(203, 'watchIndex', '/n/past', 'x');
  },
  async fiftyWatchesOfOneKey() {
    const index = Number((await call('get', '/n/key')).headers['x-etcd-index']);
    const watches = Array.from({ length: 50 }, () => call('watchIndex', '/n/fifty', index + 1));
    await succeeds('set', '/n/fifty', 'told');
    const told = await Promise.all(watches);
    assert.deepStrictEqual(new Set(told.map((answer) => answer.body.node.value)), new Set(['told']));
  },
  async aWatcherSeesEveryChange() {
    const first = await succeeds('set', '/n/many', '0');
    const watcher = etcd.watcher('/n/many', first.node.modifiedIndex + 1);
    const seen = [];
    const all = new Promise((resolve) => watcher.on('change', (body) => {
      seen.push(body.node.value);
      if (seen.length === 20) resolve();
    }));
    const expected = Array.from({ length: 20 }, (_, number) => String(number));
    for (const value of expected) await succeeds('set', '/n/many', value);
    await all;
    watcher.stop();
    assert.deepStrictEqual(seen, expected);
  },
  async aWatcherWhoseHistoryIsGoneSynchronizesAgain() {
    const watcher = etcd.watcher('/n/lost', 1, {});
    const [error] = await once(watcher, 'resync');
    assert.strictEqual(error.error.errorCode, 401);
    assert.match(error.error.cause, /^the requested history has been cleared \[\d+\/1\]$/);
    const change = once(watcher, 'change');
    await succeeds('set', '/n/lost', 'found');
    assert.strictEqual((await change)[0].node.value, 'found');
    watcher.stop();
  },
  async eventsByTheirActions() {
    const watcher = etcd.watcher('/n/actions');
    const seen = [];
    for (const action of ['set', 'compareAndSwap', 'delete']) watcher.on(action, () => seen.push(action));
    const last = once(watcher, 'delete');
    const first = once(watcher, 'set');
    for (let tries = 0; seen.length === 0; tries += 1) {
      // When a watch without an index begins is not told: it is made to see one of several.
      await succeeds('set', '/n/actions', String(tries));
      await Promise.race([first, new Promise((resolve) => setTimeout(resolve, 50))]);
    }
    const { node } = await succeeds('get', '/n/actions');
    await succeeds('compareAndSwap', '/n/actions', 'new', node.value);
    await succeeds('del', '/n/actions');
    await last;
    watcher.stop();
    assert.deepStrictEqual(seen.slice(-2), ['compareAndSwap', 'delete']);
  },
  async synchronousCalls() {
    const written = etcd.setSync('/n/sync', 'x');
    assert.strictEqual(written.err, null);
    assert.strictEqual(etcd.getSync('/n/sync').body.node.value, 'x');
    assert.strictEqual(etcd.delSync('/n/sync').body.action, 'delete');
  },
  async statisticsAndVersion() {
    assert.strictEqual((await succeeds('selfStats')).state, 'StateLeader');
    assert.deepStrictEqual((await succeeds('leaderStats')).followers, {});
    assert.strictEqual((await succeeds('version')).etcdserver, '3.4.23');
  },
  async whatOldServersHadIsMissed() {
    await refused(100, 'machines');
    assert.strictEqual((await call('leader')).body, '404 page not found\n');
  },
  async unknownMethodsAreRefused() {
    const { body, headers } = await call('raw', 'PATCH', 'v2/keys/n/key', 'x');
    assert.strictEqual(body, 'Method Not Allowed\n');
    assert.strictEqual(headers.allow, 'HEAD,GET,PUT,POST,DELETE');
  },
  async severalHosts() {
    const some = new Etcd(['http://127.0.0.1:1', url]);
    await new Promise((resolve, reject) => some.get('/n/key', (error) => (error ? reject(error) : resolve())));
  },
};

function watch() {
  const watcher = etcd.watcher('/watched', null, { recursive: true });
  watcher.on('change', (body) => say({ change: body.node.value, index: body.node.modifiedIndex }));
  watcher.on('reconnect', () => say({ reconnect: true }));
  watcher.on('error', (error) => say({ failed: error.message }));
}

async function main() {
  for (const [check, run] of Object.entries(checks)) {
    let error = null;
    try {
      await run();
    } catch (found) {
      error = found.stack || String(found);
    }
    say({ check, error });
  }
}

if (process.argv[4] === 'watcher') watch();
else main();
