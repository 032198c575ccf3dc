// Runs llama.cpp on a GGUF file: `node llama.mjs FILE THREADS STREAMS`. Each line of the input is a request,
// each line of the output its answer.
import readline from "node:readline";
import { getLlama } from "node-llama-cpp";

const [path, threads, streams] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const llama = await getLlama({ gpu: false, build: "never", progressLogs: false, logLevel: "error", maxThreads: threads });
const model = await llama.loadModel({ modelPath: path });
const context = await model.createContext({ contextSize: 640, sequences: streams, batchSize: 512, threads });
const sequences = Array.from({ length: streams }, () => context.getSequence());
const now = () => performance.now() / 1e3;

async function prefill(tokens) {
    await sequences[0].clearHistory();
    const begin = now();
    await sequences[0].evaluateWithoutGeneratingNewTokens(tokens);
    return now() - begin;
}

async function decode(prompts, count) {
    const rows = sequences.slice(0, prompts.length);
    for (const row of rows) await row.clearHistory();
    // All but the last token of a prompt: the generation evaluates that one.
    await Promise.all(rows.map((row, index) => row.evaluateWithoutGeneratingNewTokens(prompts[index].slice(0, -1))));
    let generated = 0;
    const begin = now();
    await Promise.all(rows.map(async (row, index) => {
        let left = count;
        for await (const _ of row.evaluate(prompts[index].slice(-1), { temperature: 0, yieldEogToken: true })) {
            generated += 1;
            left -= 1;
            if (left === 0) break;
        }
    }));
    return { seconds: now() - begin, generated };
}

console.log(JSON.stringify({ version: llama.llamaCppRelease?.release ?? "unknown" }));
for await (const line of readline.createInterface({ input: process.stdin })) {
    const request = JSON.parse(line);
    const answer = request.prefill
        ? { seconds: await prefill(request.prefill), generated: 0 }
        : await decode(request.decode, request.count);
    console.log(JSON.stringify(answer));
}
process.exit(0);
