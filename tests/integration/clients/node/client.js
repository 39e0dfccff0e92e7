// Requests over one session of Node's own http2 client: many streams at once, an upload, trailers asked for.
//
//     node client.js HOST PORT CA.crt
//
// Prints one JSON document about what came back.
'use strict';
const http2 = require('node:http2');
const fs = require('node:fs');
const crypto = require('node:crypto');

const [host, port, ca] = process.argv.slice(2);
const session = http2.connect(`https://${host}:${port}`, { ca: fs.readFileSync(ca) });
session.on('error', (error) => {
  console.error(error);
  process.exit(1);
});

function request(headers, body) {
  return new Promise((resolve, reject) => {
    const stream = session.request(headers);
    const answer = { chunks: [], trailers: {} };
    stream.on('response', (fields) => { answer.headers = { ...fields }; answer.status = fields[':status']; });
    stream.on('data', (chunk) => answer.chunks.push(chunk));
    stream.on('trailers', (fields) => { answer.trailers = { ...fields }; });
    stream.on('error', reject);
    stream.on('end', () => resolve({ ...answer, chunks: undefined, body: Buffer.concat(answer.chunks).toString() }));
    stream.end(body);
  });
}

async function main() {
  const many = await Promise.all(
    Array.from({ length: 100 }, (_, n) => request({ ':path': `/many/${n}?x=${n}`, 'x-number': String(n) })));
  const upload = crypto.randomBytes(3 << 20);
  const uploaded = await request({ ':path': '/upload', ':method': 'POST' }, upload);
  const health = await request({ ':path': '/health' });
  console.log(JSON.stringify({
    alpn: session.socket.alpnProtocol,
    protocol: session.socket.getProtocol(),
    many,
    uploaded,
    sha256: crypto.createHash('sha256').update(upload).digest('hex'),
    health,
  }));
  session.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
