// Packs files with their folders into one zip file, without compression.

const TABLE = Uint32Array.from({length: 256}, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? value >>> 1 ^ 0xedb88320 : value >>> 1;
  return value;
});

async function checksum(file) {
  let value = 0xffffffff;
  for (const byte of new Uint8Array(await file.arrayBuffer())) value = value >>> 8 ^ TABLE[(value ^ byte) & 255];
  return ~value;
}

// A record of the format: a number and its bytes, again and again.
function record(...fields) {
  const bytes = [];
  for (let place = 0; place < fields.length; place += 2) {
    for (let byte = 0; byte < fields[place + 1]; byte++) bytes.push(fields[place] >>> 8 * byte & 255);
  }
  return Uint8Array.from(bytes);
}

export async function zipped(files) {
  const parts = [], contents = [];
  let offset = 0, listed = 0;
  for (const file of files) {
    const name = new TextEncoder().encode(file.path || file.webkitRelativePath || file.name);
    const common = [20, 2, 0x800, 2, 0, 2, 0, 2, 0x21, 2, await checksum(file), 4, file.size, 4, file.size, 4];
    const header = record(0x04034b50, 4, ...common, name.length, 2, 0, 2);
    contents.push(record(0x02014b50, 4, 20, 2, ...common, name.length, 2, 0, 4, 0, 4, 0, 4, offset, 4), name);
    parts.push(header, name, file);
    offset += header.length + name.length + file.size;
    listed += 46 + name.length;
  }
  const count = files.length;
  const end = record(0x06054b50, 4, 0, 4, count, 2, count, 2, listed, 4, offset, 4, 0, 2);
  return new File([...parts, ...contents, end], "labels.zip");
}
