// The request on the canvas as a curl command and as a Python program with the SDK.

import { CREATE } from "./api.js";
import { SIDES } from "./geometry.js";

export function body(ratios, { prompt, n }) {
  const sides = Object.fromEntries(SIDES.map((side) => [`${side}_expansion_ratio`, ratios[side]]));
  return { ...sides, n, ...(prompt && { prompt }) };
}

// The shell reads the photo into a here-document, because it would be too long for an argument.
export function curl(photo, ratios, words, key) {
  const fields = JSON.stringify(body(ratios, words), null, 2).slice(2).replace(/[\\$`]/g, "\\$&");
  const file = `'${photo.name.replaceAll("'", "'\\''")}'`;
  return `curl ${location.origin}${CREATE} \\
  -H 'Authorization: Bearer ${key.replaceAll("'", "'\\''")}' \\
  -H 'Content-Type: application/json' \\
  --data-binary @- <<JSON
{ "image": "$(base64 < ${file} | tr -d '\\n')",
${fields}
JSON
`;
}

export function python(photo, ratios, { prompt, n }, key) {
  const sides = SIDES.filter((side) => ratios[side] > 0).map((side) => `${side}=${ratios[side]}`);
  const more = (prompt ? `, prompt=${JSON.stringify(prompt)}` : "") + (n > 1 ? `, n=${n}` : "");
  return `import asyncio

from kling_expand import KlingClient, Ratios


async def main():
    async with KlingClient(api_key=${JSON.stringify(key)}, base_url="${location.origin}") as kling:
        result = await kling.expand(${JSON.stringify(photo.name)}, Ratios(${sides.join(", ")})${more})
        for path in await result.save("out/"):
            print(path)


asyncio.run(main())
`;
}
