// The sidebar tab with all runs: it lists them, lays their curves over each other, and deletes one after asking.

import assert from 'node:assert/strict'
import { assertReadable, inTheme } from './looks.mjs'
import { ask, given, openTemplate, scenario, screenshot, step, text } from './scenario.mjs'

await scenario(async ({ open, note }) => {
  const page = await open()
  step('open the template')
  await openTemplate(page)

  step('the tab lists the runs')
  await page.getByRole('button', { name: new RegExp(`^(${text('runs.tab')}|${text('runs.tooltip')})`) }).first().click()
  const list = page.getByRole('list', { name: text('runs.tab') })
  const { runs } = await ask('/wantune/runs')
  assert.ok(runs.length > 0)
  const { name, run } = runs.find((each) => each.name === given.run)
  const item = list.getByRole('listitem').filter({ hasText: name })
  await item.waitFor()
  assert.equal(await list.getByRole('listitem').count(), runs.length)

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
