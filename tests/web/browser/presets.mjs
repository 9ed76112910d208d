// Every node of ours stands in the page, the preset of Train Wan LoRA fills in its widgets, and those that few need are hidden.

import assert from 'node:assert/strict'
import { ask, given, nodeOf, openTemplate, scenario, screenshot, setWidget, show, step } from './scenario.mjs'

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

  step('what a workflow sets is shown as it opens, although few need it')
  const kept = await nodeOf(page, 'WanTune_KeepSettings')
  await show(page, kept)
  const cadences = await advancedOf('WanTune_KeepSettings')
  await assertSeen(page, kept, cadences, cadences)
  const { inputs: saved } = (await page.evaluate(() => window.app.graphToPrompt())).output[kept]
  assert.deepEqual([saved.evaluate_steps, saved.every_steps, saved.keep_last], [20, 25, 3])

  step('a new node hides it until it is asked for, and has it all the same')
  const advanced = await advancedOf('WanTune_OptimizerSettings')
  const id = await page.evaluate(() => {
    const node = window.LiteGraph.createNode('WanTune_OptimizerSettings')
    node.pos = [window.app.graph.nodes[0].pos[0], -1500]
    window.app.graph.add(node)
    return node.id
  })
  await show(page, id)
  await assertSeen(page, id, ['schedule', 'ema_decay'], ['schedule', 'ema_decay'])
  const button = page.locator(`[data-node-id="${id}"]`).getByTestId('advanced-inputs-button')
  // Nodes 2.0 of older front ends and the classic canvas hide nothing
  const hides = given.vue && await button.count() > 0
  await assertSeen(page, id, advanced, hides ? [] : advanced)
  await screenshot(page, 'advanced-hidden')
  if (hides) await button.click()
  await assertSeen(page, id, advanced, advanced)
  await screenshot(page, 'advanced-shown')

  step('opened again, a changed value is seen, and what is as delivered is hidden')
  await setWidget(page, id, 'eps', 1e-6)
  const reopened = await page.evaluate(async (id) => {
    const graph = window.app.graph.serialize()
    const node = graph.nodes.find((each) => `${each.id}` === `${id}`)
    delete node.showAdvanced
    const other = { ...structuredClone(node), id: graph.last_node_id + 1, pos: [node.pos[0] + 500, node.pos[1]] }
    other.widgets_values[3] = 1e-8
    graph.last_node_id = other.id
    graph.nodes.push(other)
    await window.app.loadGraphData(graph)
    return other.id
  }, id)
  await show(page, id)
  await assertSeen(page, id, advanced, advanced)
  await assertSeen(page, reopened, advanced, hides ? [] : advanced)
  assert.equal((await page.evaluate(() => window.app.graphToPrompt())).output[id].inputs.eps, 1e-6)
  await screenshot(page, 'advanced-reopened')
})

/** The inputs of a type that its description marks as advanced. */
async function advancedOf(type) {
  const { required, optional } = (await ask(`/object_info/${type}`))[type].input
  return Object.entries({ ...required, ...optional }).filter(([, [, options]]) => options?.advanced).map(([name]) => name)
}

/** Looks until a node shows those of these widgets that are wanted, and no others: drawing takes its time. */
async function assertSeen(page, id, names, wanted) {
  for (let tries = 0; tries < 25 && `${await seen(page, id, names)}` !== `${wanted}`; tries++) await page.waitForTimeout(200)
  assert.deepEqual(await seen(page, id, names), wanted)
}

/** Those of these widgets that a node shows: as the canvas draws them, or as they stand in its element. */
function seen(page, id, names) {
  return page.evaluate(([id, names]) => {
    const node = window.app.graph.getNodeById(id)
    if (!window.LiteGraph.vueNodesMode) {
      const shown = node.widgets.filter((widget) => node.isWidgetVisible(widget)).map(({ name }) => name)
      return names.filter((name) => shown.includes(name))
    }
    const leaves = [...document.querySelectorAll(`[data-node-id="${id}"] *`)].filter((each) => !each.children.length)
    const words = leaves.filter((each) => each.checkVisibility()).map((each) => each.textContent.trim())
    return names.filter((name) => words.includes(name))
  }, [id, names])
}
