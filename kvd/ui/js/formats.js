// How an export is written: node by node, so that not all of it need be there at once.
//
//   open(entry)   a directory begins      close(entry)   it ends
//   leaf(entry)   a key                   end()          nothing more comes

import { yamlModule } from "./syntax.js";

export const FORMATS = [
  ["json", "JSON", "nested: directories are objects"],
  ["yaml", "YAML", "nested, for reading and for changes by hand"],
  ["v2", "etcd v2 JSON", "as the API shows it, with the times that keys have left"],
];

/** The writer of a format; `write` takes its texts. */
export async function writerOf(format, write) {
  if (format === "json") return new Json(write);
  if (format === "v2") return new V2(write);
  const { dump } = await yamlModule();
  return new Yaml(write, dump);
}

class Json {
  constructor(write) {
    this.write = write;
    this.counts = [0];
    write("{");
  }

  member(name) {
    this.write(`${this.counts[this.counts.length - 1]++ ? "," : ""}\n${"  ".repeat(this.counts.length)}${JSON.stringify(name)}: `);
  }

  open({ name }) {
    this.member(name);
    this.write("{");
    this.counts.push(0);
  }

  leaf({ name, text, base64 }) {
    this.member(name);
    this.write(base64 === undefined ? JSON.stringify(text) : `{ "$base64": "${base64}" }`);
  }

  close() {
    this.write(this.counts.pop() ? `\n${"  ".repeat(this.counts.length)}}` : "}");
  }

  end() {
    this.write(this.counts[0] ? "\n}\n" : "}\n");
  }
}

/** The answers of etcd's v2 API. */
class V2 {
  constructor(write) {
    this.write = write;
    this.counts = [0];
    write('{"action":"get","node":{"dir":true,"nodes":[');
  }

  node({ key, ends, modifiedIndex, createdIndex }, more) {
    const ttl = ends ? { ttl: Math.max(1, Math.ceil((ends - performance.now()) / 1000)) } : {};
    this.write(`${this.counts[this.counts.length - 1]++ ? "," : ""}\n${JSON.stringify({ key, ...ttl, modifiedIndex, createdIndex, ...more }).slice(0, -1)}`);
  }

  open(entry) {
    this.node(entry, { dir: true });
    this.write(',"nodes":[');
    this.counts.push(0);
  }

  leaf(entry) {
    this.node(entry, entry.base64 === undefined ? { value: entry.text } : { value: entry.base64, encoding: "base64" });
    this.write("}");
  }

  close() {
    this.counts.pop();
    this.write("]}");
  }

  end() {
    this.write("\n]}}\n");
  }
}

class Yaml {
  constructor(write, dump) {
    this.write = write;
    this.dump = dump;
    this.counts = [0];
  }

  /** A member as the vendored module writes it, indented; without a prototype any name is one as any other. */
  member(name, value) {
    const object = Object.create(null);
    object[name] = value;
    const indent = "  ".repeat(this.counts.length - 1);
    if (this.counts.length > 1 && !this.counts.at(-1)) this.write("\n");
    this.counts[this.counts.length - 1] += 1;
    // A text that ends in empty lines would end the document.
    return this.dump(object, { lineWidth: -1 }).replace(/\n\.\.\.\n$/, "\n").replace(/^(?=.)/gm, indent);
  }

  open({ name }) {
    this.write(this.member(name, {}).replace(/ \{\}\n$/, ""));
    this.counts.push(0);
  }

  leaf({ name, text, base64 }) {
    this.write(this.member(name, base64 === undefined ? text : { $base64: base64 }));
  }

  close() {
    if (!this.counts.pop()) this.write(" {}\n");
  }

  end() {
    if (!this.counts[0]) this.write("{}\n");
  }
}
