// Every node of ours stands in the page, and the preset of Train Wan LoRA fills in its widgets.

import assert from 'node:assert/strict'
import { ask, nodeOf, openTemplate, scenario, screenshot, setWidget, show, step } from './scenario.mjs'

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
})
