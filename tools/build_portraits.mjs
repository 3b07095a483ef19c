// Reads one JSON of options a line, writes one JSON {svg} a line: DiceBear's Toon Head drawn with exactly these options.
import { createInterface } from "node:readline";
import { createAvatar } from "@dicebear/core";
import { toonHead } from "@dicebear/collection";

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(JSON.stringify({ svg: createAvatar(toonHead, JSON.parse(line)).toString() }) + "\n");
}
