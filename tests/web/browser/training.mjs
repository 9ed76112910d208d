// A run as its page shows it: the chart grows, previews appear, reloading and a second browser bring everything back, Stop & use
// lets the graph go on.

import assert from 'node:assert/strict'
import { assertReadable, inTheme, tabTo } from './looks.mjs'
import {
  ask, openTemplate, panelOf, pressRun, scenario, screenshot, step, text, untilIdle, untilNodes,
} from './scenario.mjs'

const TRAIN = 'WanTune_TrainWanLoRA'
const MEASURED = /^likeness -?\d\.\d\d \(base -?\d\.\d\d\) \u00b7 motion \d+\.\d\d of base$/

await scenario(async ({ open, note }) => {
  const page = await open()
  step('open the template')
  await openTemplate(page)
  const train = await shown(page)
  await train.panel.getByText(text('chart.hint')).waitFor()

  step('queue it with the Run button')
  await pressRun(page)
  await untilTraining(train)

  step('the chart grows')
  const before = await points(train)
  await untilPoints(page, train, before + 8)
  await train.panel.getByText(text('chart.held_out'), { exact: false }).first().waitFor()

  step('what is learned, and what that says')
  await train.panel.locator('path.wt-learned').waitFor({ state: 'attached' }) // from the second evaluation on
  await train.panel.locator('.wt-verdict').getByText(/^learned -?[\d.e-]+: \S/).waitFor()

  step('a preview appears')
  await train.preview.waitFor()
  await page.waitForFunction((image) => image.naturalWidth > 0, await train.preview.locator('img').elementHandle())
  await train.panel.locator('.wt-previews figcaption').getByText(MEASURED).waitFor()
  await screenshot(page, 'training')

  step('pointing at it shows values, choosing a checkpoint names it')
  const plot = plotOf(train)
  await plot.hover()
  await page.waitForFunction((plot) => plot.querySelector('.wt-cursor line'), await plot.elementHandle())
  const marks = plot.locator('.wt-mark')
  const under = plot.locator('.wt-mark:hover')
  const untilNamed = (key) => train.panel.locator('.wt-checkpoint')
    .getByText(new RegExp(`^Checkpoint of step ${key.split('/').at(-1)}\\b`)).waitFor()
  // held over some redrawing: the mark has to stay under the mouse, and to move with the others afterwards
  for (let isHit = false; !isHit;) {
    await marks.last().hover({ force: true }).catch(() => null) // drawn anew at this moment, as another kind of mark
    await page.mouse.down()
    isHit = await under.count()
    if (!isHit) await page.mouse.up() // it had moved on
  }
  const held = await under.elementHandle()
  await untilPoints(page, train, await points(train) + 8)
  assert.ok(await held.evaluate((mark) => mark.isConnected), 'the mark under the mouse is gone')
  await page.mouse.up()
  const pressed = await held.getAttribute('data-key')
  await untilNamed(pressed)
  await page.waitForFunction(([plot, key]) => [...plot.querySelectorAll('.wt-mark')].at(-1).dataset.key !== key,
    [await plot.elementHandle(), pressed])
  await marks.last().focus()
  const focused = await page.evaluate(() => document.activeElement.dataset.key)
  await page.keyboard.press('Enter')
  await untilNamed(focused)

  step('log scale and learning rate on demand')
  for (const key of ['chart.log', 'chart.rate']) {
    const toggle = train.panel.getByRole('button', { name: text(key), exact: true })
    assert.equal(await toggle.getAttribute('aria-pressed'), 'false')
    await toggle.click()
    assert.equal(await toggle.getAttribute('aria-pressed'), 'true')
  }
  assert.ok(await plot.locator('path.wt-rate').getAttribute('d'))

  step('zoomed by dragging and by wheel, the node and the canvas stay')
  const places = () => page.evaluate((type) => {
    const { graph, canvas } = window.app
    return [canvas.ds.scale, ...canvas.ds.offset, ...graph.nodes.find((node) => node.type === type).pos]
  }, TRAIN)
  const [stood, all] = [await places(), train.panel.getByRole('button', { name: text('chart.all'), exact: true })]
  assert.ok(await all.isDisabled())
  const area = await plot.boundingBox()
  const at = (share) => [area.x + area.width * share, area.y + area.height / 2]
  await drag(page, at(0.3), at(0.7))
  assert.ok(await all.isEnabled())
  const grid = plot.locator('.wt-grid')
  const coarse = await grid.innerHTML()
  await page.mouse.wheel(0, -100)
  await page.waitForFunction(([grid, coarse]) => grid.innerHTML !== coarse, [await grid.elementHandle(), coarse])
  await page.mouse.dblclick(...at(0.5))
  assert.ok(await all.isDisabled())
  assert.deepEqual(await places(), stood)

  step('the preview opens, plays, and steps through the run')
  await train.preview.click()
  const dialog = page.getByRole('dialog', { name: text('chart.previews') })
  await untilPlaying(page, dialog.locator('video').first())
  await dialog.locator('figcaption').getByText(MEASURED).waitFor()
  await screenshot(page, 'preview')
  await page.keyboard.press('Home')
  await dialog.getByText(text('chart.preview_base')).waitFor()
  await dialog.locator('figcaption').getByText(/^likeness -?\d\.\d\d$/).waitFor()
  await page.keyboard.press('Escape')
  await dialog.waitFor({ state: 'hidden' })

  step('switching workflow tabs brings it back')
  await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.NewBlankWorkflow'))
  await page.waitForFunction((type) => !window.app.graph.nodes.some((node) => node.type === type), TRAIN)
  await page.evaluate(() => window.app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow'))
  await untilNodes(page)
  await untilPoints(page, await shown(page), before + 8)

  step('reloading brings it back')
  await page.reload({ waitUntil: 'domcontentloaded' })
  await untilNodes(page)
  const again = await shown(page)
  await untilPoints(page, again, before + 8)
  await again.preview.waitFor()
  await again.stop.waitFor()
  await screenshot(page, 'reloaded')

  step('a second browser shows the same run')
  const second = await open()
  await openTemplate(second)
  const other = await shown(second)
  await untilPoints(second, other, before + 8)
  await other.preview.waitFor()

  step('readable in both themes')
  await note(() => assertReadable(page, '.wt-train'))
  await inTheme(page, 'light', async () => {
    await note(() => assertReadable(page, '.wt-train'))
    await screenshot(page, 'training-light')
  })

  step('Stop & use, by keyboard')
  await tabTo(page, plotOf(again))
  await page.keyboard.press('ArrowLeft')
  await tabTo(page, again.stop)
  await page.keyboard.press('Enter')
  for (const each of [again, other]) {
    await each.panel.getByText(/^Stopped after step \d+/).waitFor()
    await each.stop.waitFor({ state: 'hidden' })
  }
  await again.panel.getByText(/The next Queue continues from step \d+/).waitFor()
  await untilIdle()
  await screenshot(page, 'stopped')
  const [entry] = Object.values(await ask('/history?max_items=1'))
  assert.equal(entry.status.status_str, 'success', 'the graph went on')

  step('both videos play, as one')
  const compared = await player(page)
  for (const index of [0, 1]) await untilPlaying(page, compared.videos.nth(index))
  await untilTogether(page, compared.videos)
  await screenshot(page, 'compared')

  step('the split is dragged, and moved by keyboard')
  const box = await compared.handle.boundingBox()
  const [x, y] = [box.x + box.width / 2, box.y + box.height / 2]
  const start = await compared.split()
  await drag(page, [x, y], [x - 60, y])
  const dragged = await compared.split()
  assert.ok(dragged < start - 5, `dragged from ${start} to ${dragged}`)
  await tabTo(page, compared.handle)
  await page.keyboard.press('ArrowRight')
  assert.ok(await compared.split() > dragged)
  await screenshot(page, 'split')

  step('pause, step, side by side, A/B')
  await compared.button('pause').click()
  await compared.button('play').waitFor()
  const frame = await compared.panel.getByText(/^\d+ \/ \d+$/).textContent()
  await compared.button('forward').click()
  await page.waitForFunction(([panel, frame]) => !panel.textContent.includes(frame), [await compared.panel.elementHandle(), frame])
  await compared.button('side').click()
  assert.ok(await compared.videos.first().isVisible() && await compared.videos.last().isVisible())
  await compared.panel.focus()
  await page.keyboard.press('b')
  assert.equal(await compared.button('blink').getAttribute('aria-pressed'), 'true')
  await note(() => assertReadable(page, '.wt-player'))
  await inTheme(page, 'light', async () => {
    await note(() => assertReadable(page, '.wt-player'))
    await screenshot(page, 'compared-light')
  })

  step('after a reload the result is still there')
  await page.reload({ waitUntil: 'domcontentloaded' })
  await untilNodes(page)
  const reopened = await player(page)
  for (const index of [0, 1]) await untilPlaying(page, reopened.videos.nth(index))
})

/** The panel of Train Wan LoRA, brought into the window. */
async function shown(page) {
  const panel = await panelOf(page, TRAIN)
  return {
    panel,
    stop: panel.getByRole('button', { name: text('chart.stop'), exact: true }),
    preview: panel.getByRole('button', { name: /enlarge and step through the run/ }).first(),
  }
}

/** The player of Compare Videos, brought into the window. */
async function player(page) {
  const panel = await panelOf(page, 'WanTune_CompareVideos')
  const handle = panel.getByRole('slider', { name: text('compare.handle') })
  await handle.waitFor()
  return {
    panel,
    handle,
    videos: panel.locator('video'),
    split: async () => Number(await handle.getAttribute('aria-valuenow')),
    button: (action) => panel.getByRole('button', { name: text(`compare.${action}`), exact: true }),
  }
}

/** Until both show the same frame. */
async function untilTogether(page, videos) {
  const elements = await Promise.all([videos.first().elementHandle(), videos.last().elementHandle()])
  await page.waitForFunction(([one, other]) => Math.abs(one.currentTime - other.currentTime) < 1 / 16, elements)
}

function plotOf({ panel }) {
  return panel.getByRole('group', { name: text('chart.chart_label') })
}

async function untilTraining({ panel, stop }) {
  await stop.waitFor()
  await panel.getByText(/^Step \d+ of \d+/).waitFor()
}

async function drag(page, from, to) {
  await page.mouse.move(...from)
  await page.mouse.down()
  await page.mouse.move(...to, { steps: 5 })
  await page.mouse.up()
}

/** How many points the line of the smoothed loss has. */
async function points({ panel }) {
  return ((await panel.locator('path.wt-smooth').getAttribute('d')) ?? '').split(/[ML]/).length - 1
}

async function untilPoints(page, train, count) {
  const line = train.panel.locator('path.wt-smooth')
  await line.waitFor({ state: 'attached' })
  await page.waitForFunction(([selector, count]) => {
    return (document.querySelector(selector)?.getAttribute('d') ?? '').split(/[ML]/).length > count
  }, ['.wt-train path.wt-smooth', count])
}

async function untilPlaying(page, video) {
  await video.waitFor()
  const element = await video.elementHandle()
  await page.waitForFunction((video) => video.readyState >= 2 && !video.paused && video.currentTime > 0, element)
}
