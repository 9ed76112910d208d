// Each example as it opens: the page makes of it the graph that lies beside it in API form, and no node lies on another.

import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import { ask, given, openTemplate, panelOf, scenario, screenshot, step } from './scenario.mjs'

await scenario(async ({ open }) => {
  const names = (await ask('/workflow_templates'))[given.pack]
  const page = await open()
  for (const name of names) {
    step(name)
    // a page that had a graph shows it once more before it opens another template
    if (name === names[0]) await openTemplate(page, name, given.pack)
    else await page.evaluate(load, `/api/workflow_templates/${given.pack}/${name}.json`)
    // nodes take their room as they are drawn
    await panelOf(page, 'WanTune_TrainWanLoRA')
    await page.waitForFunction(`(${overlaps})().length === 0`, null, { timeout: 20_000 }).catch(() => {})
    await page.evaluate(showAll)
    await screenshot(page, name)
    assert.deepEqual(await page.evaluate(overlaps), [])
    const shipped = JSON.parse(fs.readFileSync(path.join(given.examples, 'api', `${name}.json`), 'utf8'))
    const made = (await page.evaluate(() => window.app.graphToPrompt())).output
    assert.deepEqual(Object.keys(made).sort(), Object.keys(shipped).sort())
    for (const [id, { class_type: type, inputs }] of Object.entries(shipped)) {
      const found = Object.fromEntries(Object.keys(inputs).map((input) => [input, made[id].inputs[input]]))
      assert.deepEqual([made[id].class_type, found], [type, inputs], `${name}, node ${id}`)
    }
  }
})

/** Runs in the page. */
async function load(address) {
  await window.app.loadGraphData(await (await fetch(address)).json())
}

/** Runs in the page: the whole graph in the window. */
async function showAll() {
  const { canvas, graph } = window.app
  const left = Math.min(...graph.nodes.map((node) => node.pos[0])) - 40
  const [x, , width, height] = graph.groups.reduce(([x, y, width, height], { pos, size }) =>
    [Math.min(x, pos[0]), y, Math.max(width, pos[0] + size[0]), Math.max(height, size[1])], [left, 0, 0, 0])
  const scale = Math.min(1500 / (width - x), 850 / height)
  canvas.ds.scale = scale
  canvas.ds.offset = [60 / scale - x, 100 / scale]
  canvas.setDirty(true, true)
  await new Promise((done) => setTimeout(done, 500))
}

/** Runs in the page: pairs of titles of nodes that share some of the canvas. */
function overlaps() {
  const { graph, canvas } = window.app
  const boxes = graph.nodes.map((node) => {
    const element = window.LiteGraph.vueNodesMode && document.querySelector(`[data-node-id="${node.id}"]`)
    if (!element) {
      const [x, y, width, height] = node.boundingRect ?? node.getBounding()
      return { title: node.title, left: x, top: y, right: x + width, bottom: y + height }
    }
    const { left, top, right, bottom } = element.getBoundingClientRect()
    const scaled = [left, top, right, bottom].map((pixel) => pixel / canvas.ds.scale)
    return { title: node.title, left: scaled[0], top: scaled[1], right: scaled[2], bottom: scaled[3] }
  })
  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1
  return boxes.flatMap((one, index) => boxes.slice(index + 1).filter((other) => meet(one, other)).map((other) => `${one.title} / ${other.title}`))
}
