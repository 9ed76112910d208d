// Both experts of a pair in one panel: two curves, the one whose turn it is named, reloading, and one Stop for both.

import assert from 'node:assert/strict'
import { assertReadable, inTheme } from './looks.mjs'
import {
  ask, given, openTemplate, panelOf, pressRun, scenario, screenshot, step, text, untilIdle, untilNodes,
} from './scenario.mjs'

const TRAIN = 'WanTune_TrainWanLoRA'
const EXPERTS = ['high', 'low'].map((expert) => text(`chart.${expert}_expert`))

await scenario(async ({ open, note }) => {
  const page = await open()
  step('queue the graph with two models')
  await openTemplate(page)
  const panel = await panelOf(page, TRAIN)
  await panel.getByText(text('chart.hint')).waitFor()
  await pressRun(page)

  step('each has its turn')
  const state = panel.locator('.wt-state')
  const turns = EXPERTS.map((expert) => `${expert}: ${text('chart.state_running')}`)
  for (const turn of [...turns, ...turns]) await state.getByText(turn, { exact: true }).waitFor()

  step('the chart has both')
  await untilCurves(page)
  for (const expert of EXPERTS) await panel.locator('.wt-legend').getByText(expert).waitFor()
  await screenshot(page, 'pair')
  const plot = panel.getByRole('group', { name: text('chart.chart_label') })
  await plot.hover()
  await page.waitForFunction((plot) => plot.querySelector('.wt-cursor line'), await plot.elementHandle())

  step('reloading brings both back')
  await page.reload({ waitUntil: 'domcontentloaded' })
  await untilNodes(page)
  const again = await panelOf(page, TRAIN)
  await untilCurves(page)
  for (const turn of turns) await again.locator('.wt-state').getByText(turn, { exact: true }).waitFor()
  await note(() => assertReadable(page, '.wt-train'))
  await inTheme(page, 'light', async () => {
    await note(() => assertReadable(page, '.wt-train'))
    await screenshot(page, 'pair-light')
  })

  step('Stop & use ends both')
  await again.getByRole('button', { name: text('chart.stop'), exact: true }).click()
  for (const expert of EXPERTS) await again.getByText(new RegExp(`${expert}: Stopped after step \\d+`)).waitFor()
  await untilIdle()
  await screenshot(page, 'pair-stopped')
  const [entry] = Object.values(await ask('/history?max_items=1'))
  assert.equal(entry.status.status_str, 'success', 'the graph went on')

  step('Runs lists both')
  await page.getByRole('button', { name: new RegExp(`^(${text('runs.tab')}|${text('runs.tooltip')})`) }).first().click()
  const list = page.getByRole('list', { name: text('runs.tab') })
  const { runs } = await ask('/wantune/runs')
  const both = runs.filter(({ name }) => name.startsWith(`${given.template}_`))
  assert.equal(both.length, 2)
  for (const { run, name } of both) {
    await list.getByTitle(run, { exact: true }).getByRole('checkbox', { name: text('runs.compare', { name }) }).check()
  }
  await page.waitForFunction(() => document.querySelectorAll('.wt-browser path.wt-smooth').length === 2)
  await screenshot(page, 'pair-runs')
})

/** Until both lines of smoothed losses have points. */
async function untilCurves(page) {
  await page.waitForFunction(() => {
    const lines = [...document.querySelectorAll('.wt-train path.wt-smooth')]
    return lines.length === 2 && lines.every((line) => (line.getAttribute('d') ?? '').length > 40)
  })
}
