// The sidebar tab with all runs: it lists them, lays their curves over each other, opens the graph of each attempt so that
// queueing it goes on with just that one, and deletes one after asking.

import assert from 'node:assert/strict'
import { assertReadable, inTheme } from './looks.mjs'
import {
  ask, given, nodeOf, openTemplate, pressRun, scenario, screenshot, setWidget, step, text, untilIdle,
} from './scenario.mjs'

const TRAIN = 'WanTune_TrainWanLoRA'

/** What the page would send for Train Wan LoRA. */
const queued = (page) => page.evaluate(async (type) => {
  const { output } = await window.app.graphToPrompt()
  return Object.values(output).find((node) => node.class_type === type).inputs
}, TRAIN)

await scenario(async ({ open, note }) => {
  const page = await open()
  step('train a further attempt of a run')
  await openTemplate(page, given.run)
  await setWidget(page, await nodeOf(page, TRAIN), 'restart', true)
  await pressRun(page)
  await page.waitForFunction(() => Object.keys(window.app.nodeOutputs ?? {}).length > 0)
  await untilIdle()

  step('the tab lists the runs')
  await page.getByRole('button', { name: new RegExp(`^(${text('runs.tab')}|${text('runs.tooltip')})`) }).first().click()
  const list = page.getByRole('list', { name: text('runs.tab') })
  const { runs } = await ask('/wantune/runs')
  assert.ok(runs.length > 0)
  const attempts = runs.filter((each) => each.run.startsWith(`${given.run}-`))
  const [first, second] = [1, 2].map((number) => attempts.find((each) => each.attempt === number))
  assert.equal(first.key, second.key)
  const itemOf = ({ run }) => list.getByTitle(run, { exact: true })
  const { name, run } = first
  const item = itemOf(first)
  await item.waitFor()
  assert.equal(await list.getByRole('listitem').count(), runs.length)
  await item.getByText(/^likeness -?\d\.\d\d \(base -?\d\.\d\d\) \u00b7 motion \d+\.\d\d of base$/).waitFor()

  step('its curve is shown')
  await item.getByRole('checkbox', { name: text('runs.compare', { name }) }).check()
  await page.waitForFunction(() => document.querySelector('.wt-browser path.wt-smooth')?.getAttribute('d'))
  await screenshot(page, 'runs')
  await note(() => assertReadable(page, '.wt-browser'))
  await inTheme(page, 'light', async () => {
    await note(() => assertReadable(page, '.wt-browser'))
    await screenshot(page, 'runs-light')
  })

  step('it finds')
  const search = page.getByRole('searchbox', { name: text('runs.filter') })
  await search.fill('no run is called so')
  await item.waitFor({ state: 'detached' })
  await search.fill(name)
  await item.waitFor()

  step('its LoRA comes into the graph')
  await item.getByRole('button', { name: text('runs.use'), exact: true }).click()
  await page.waitForFunction((run) => window.app.graph.nodes.some((node) =>
    node.type === 'WanTune_LoadRunLoRA' && node.widgets.some((widget) => widget.value === run)), run)

  step('Continue goes on with the attempt it stands beside')
  for (const [attempt, wanted] of [[first, 1], [second, 0]]) {
    await itemOf(attempt).getByRole('button', { name: text('runs.continue'), exact: true }).click()
    // the graph of the second one comes with restart on, which is switched off a moment later
    await page.waitForFunction(([type, wanted]) => window.app.graph.nodes.some((node) => node.type === type &&
      Object.entries(wanted).every(([name, value]) => node.widgets.find((widget) => widget.name === name).value === value)),
    [TRAIN, { attempt: wanted, restart: false }])
    const { attempt: number, restart } = await queued(page)
    assert.deepEqual({ number, restart }, { number: wanted, restart: false })
  }

  step('deleting asks first')
  const remove = item.getByRole('button', { name: text('runs.delete'), exact: true })
  await remove.click()
  const dialog = page.getByRole('dialog').filter({ hasText: text('runs.delete_title') })
  await dialog.waitFor()
  await screenshot(page, 'runs-delete')
  await page.keyboard.press('Escape')
  await dialog.waitFor({ state: 'hidden' })
  assert.equal((await ask('/wantune/runs')).runs.length, runs.length)
  await remove.click()
  await dialog.getByRole('button', { name: /delete/i }).click()
  await item.waitFor({ state: 'detached' })
  assert.equal((await ask('/wantune/runs')).runs.length, runs.length - 1)
})
