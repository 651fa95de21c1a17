// node node_logits.cjs MODEL.onnx IMAGES.f32 OUT.f32 N C H W: logits of float32 images by the npm package onnxruntime-node
const fs = require("fs");
const ort = require("onnxruntime-node");

async function main([model, images, out, ...shape]) {
  const bytes = fs.readFileSync(images);
  const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  const session = await ort.InferenceSession.create(model);
  const answer = await session.run({ images: new ort.Tensor("float32", values, shape.map(Number)) });
  const logits = answer.logits.data;
  fs.writeFileSync(out, Buffer.from(logits.buffer, logits.byteOffset, logits.byteLength));
}

main(process.argv.slice(2));
