// One request to each URL with Node's own https or http2 client, in the order given, each on a connection of its own.
//
//     node once.js https CA.crt URL...
//
// Prints a line for each: "ok" and the body, or "failed" and why, separated by a tab.
'use strict';
const fs = require('node:fs');
const http2 = require('node:http2');
const https = require('node:https');

const [kind, file, ...urls] = process.argv.slice(2);
const ca = fs.readFileSync(file);

function collect(stream, resolve, reject) {
  let body = '';
  stream.on('data', (chunk) => { body += chunk; });
  stream.on('end', () => resolve(body));
  stream.on('error', reject);
}

const ask = {
  https: (url) => new Promise((resolve, reject) => {
    https.get(url, { ca, agent: false, ALPNProtocols: ['http/1.1'] }, (response) => collect(response, resolve, reject))
      .on('error', reject);
  }),
  http2: (url) => new Promise((resolve, reject) => {
    const session = http2.connect(url, { ca });
    session.on('error', reject);
    const stream = session.request({ ':path': new URL(url).pathname });
    collect(stream, resolve, reject);
    stream.on('close', () => session.close());
  }),
}[kind];

async function main() {
  for (const url of urls) {
    try {
      console.log(`ok\t${await ask(url)}`);
    } catch (error) {
      console.log(`failed\t${error.code}: ${error.message.replaceAll('\n', ' ')}`);
    }
  }
}

main();
