// Every node of ours stands in the page, and the preset of Train Wan LoRA fills in its widgets.

import assert from 'node:assert/strict'
import { ask, nodeOf, openTemplate, panelOf, scenario, screenshot, setWidget, show, step } from './scenario.mjs'

await scenario(async ({ open }) => {
  const page = await open()
  step('open the template')
  await openTemplate(page)
  const train = await nodeOf(page, 'WanTune_TrainWanLoRA')

  step('all our nodes can be added')
  const wanted = Object.keys(await ask('/object_info')).filter((name) => name.startsWith('WanTune_'))
  const known = await page.evaluate(() => Object.keys(window.LiteGraph.registered_node_types))
  assert.deepEqual(wanted.filter((name) => !known.includes(name)), [])
  assert.ok(wanted.length >= 14, `the server knows ${wanted.length} nodes of ours`)

  step('the preset fills in, and a value changed by hand makes it custom')
  const value = (name) => page.evaluate(([id, name]) =>
    window.app.graph.getNodeById(id).widgets.find((widget) => widget.name === name).value, [train, name])
  await setWidget(page, train, 'preset', 'quick try')
  const quick = await value('epochs')
  await setWidget(page, train, 'preset', 'person, pictures')
  assert.notEqual(await value('epochs'), quick)
  await setWidget(page, train, 'epochs', 7)
  assert.equal(await value('preset'), 'custom')

  step('nothing of the page gets into the prompt')
  const prompt = (await page.evaluate(() => window.app.graphToPrompt())).output[train].inputs
  const described = (await ask('/object_info/WanTune_TrainWanLoRA')).WanTune_TrainWanLoRA.input
  const inputs = Object.keys({ ...described.required, ...described.optional })
  assert.deepEqual(Object.keys(prompt).filter((name) => !inputs.includes(name)), [])
  await show(page, train)
  await screenshot(page, 'presets')

  step('in the example as it opens, no node lies on another')
  // a page that had a graph shows it once more before it opens the template
  const fresh = await open()
  await openTemplate(fresh, 'train_and_compare')
  // nodes take their room as they are drawn
  await panelOf(fresh, 'WanTune_TrainWanLoRA')
  await fresh.waitForFunction(`(${overlaps})().length === 0`, null, { timeout: 20_000 }).catch(() => {})
  await screenshot(fresh, 'example')
  assert.deepEqual(await fresh.evaluate(overlaps), [])
})

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
