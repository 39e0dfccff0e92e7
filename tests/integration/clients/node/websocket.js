// One message to an echoing WebSocket, over HTTP/2 with Node's own client, which leaves WebSocket's frames to others.
//
//     node websocket.js CA.crt https://HOST:PORT PATH
//
// Prints what came of it, in JSON.
'use strict';
const fs = require('node:fs');
const http2 = require('node:http2');

const [file, origin, path] = process.argv.slice(2);

// Masked with zeros: text that is shorter than 126 bytes, and the end.
const text = (words) => Buffer.concat([Buffer.from([0x81, 0x80 | words.length, 0, 0, 0, 0]), Buffer.from(words)]);
const close = Buffer.from([0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8]);

const session = http2.connect(origin, { ca: fs.readFileSync(file) });
session.on('remoteSettings', (settings) => {
  if (!settings.enableConnectProtocol) throw new Error('there is no extended CONNECT');
  const said = {};
  const stream = session.request({
    ':method': 'CONNECT', ':protocol': 'websocket', ':path': path, 'sec-websocket-version': '13',
  }, { endStream: false });
  let received = Buffer.alloc(0);
  stream.on('response', (headers) => {
    said.status = headers[':status'];
    stream.write(text('hello'));
  });
  stream.on('data', (piece) => {
    received = Buffer.concat([received, piece]);
    if (said.echoed === undefined && received.length >= 7) {
      said.echoed = received.subarray(2, 7).toString();
      stream.end(close);
    }
  });
  stream.on('end', () => { said.ended = true; });
  stream.on('close', () => { console.log(JSON.stringify(said)); session.close(); });
});
