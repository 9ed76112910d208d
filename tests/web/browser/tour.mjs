// A first run as README tells it, on the small world, and the pictures that stand there: they are left in `artifacts`.

import fs from 'node:fs'
import path from 'node:path'
import {
  given, nodeOf, openTemplate, panelOf, pressRun, scenario, setWidget, show, step, text, untilIdle,
} from './scenario.mjs'

const LOAD = 'WanTune_LoadDataset'
const TRAIN = 'WanTune_TrainWanLoRA'
const COMPARE = 'WanTune_CompareVideos'
const PREVIEW_AT = 240

await scenario(async ({ open }) => {
  const page = await open()
  page.setDefaultTimeout(40_000)
  await page.setViewportSize({ width: 1800, height: 1500 })
  const nodes = async (...types) => Promise.all(types.map(async (type) =>
    page.locator(`[data-node-id="${await nodeOf(page, type)}"]`).first()))
  const picture = (name, locator) => locator.screenshot({ path: file(name), animations: 'disabled' })
  const region = (name, x, y, width, height) => page.screenshot({ path: file(name), clip: { x, y, width, height } })
  const viewed = (x, y, scale) => page.evaluate(([x, y, scale]) => {
    const { canvas } = window.app
    canvas.ds.scale = scale
    canvas.ds.offset = [x, y]
    canvas.setDirty(true, true)
  }, [x, y, scale])
  const settled = () => page.waitForTimeout(1500) // what fades in or is drawn late: a picture is no assertion

  step('the template')
  await page.goto(given.url, { waitUntil: 'domcontentloaded' })
  await page.waitForFunction(() => window.app?.extensionManager)
  await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates'))
  const dialog = page.getByRole('dialog').first()
  await dialog.getByText(given.pack, { exact: true }).first().click()
  await dialog.getByText('train_and_compare').first().waitFor()
  await settled()
  await picture('01_template', dialog)

  step('the graph')
  await openTemplate(page)
  await settled()
  await viewed(640, 120, 0.62)
  await settled()
  await region('02_graph', 70, 60, 1400, 960)

  step('the data')
  const sheet = await panelOf(page, LOAD)
  await sheet.locator('img').nth(11).waitFor()
  await page.waitForFunction((panel) => [...panel.querySelectorAll('img')].every((image) => image.naturalWidth > 0), await sheet.elementHandle())
  await settled()
  const [load, cache, save, apply, compare] = await nodes(
    LOAD, 'WanTune_CacheLatents', 'WanTune_SaveLoRA', 'WanTune_ApplyLoRA', COMPARE)
  await show(page, await nodeOf(page, LOAD))
  await settled()
  await picture('03_load_dataset', load)
  await panelOf(page, LOAD)
  await sheet.getByRole('switch', { name: text('sheet.edit') }).check()
  const caption = sheet.getByRole('textbox', { name: text('sheet.caption_of', { file: '02.png' }) })
  await caption.fill('GF Carty Chan digit in bright green')
  await caption.blur()
  await settled()
  await picture('04_caption', sheet)
  await sheet.getByRole('switch', { name: text('sheet.edit') }).uncheck()

  step('it trains')
  await pressRun(page)
  const chart = await panelOf(page, TRAIN)
  await chart.getByText(new RegExp(`^Preview after step (${PREVIEW_AT}|[3-9]\\d\\d)`)).waitFor({ timeout: 300_000 })
  await settled()
  await picture('06_train', chart)
  await chart.getByRole('button', { name: /enlarge and step through the run/ }).first().click()
  await page.setViewportSize({ width: 940, height: 620 })
  await settled()
  await picture('07_preview', page.getByRole('dialog', { name: text('chart.previews') }))
  await page.keyboard.press('Escape')
  await page.setViewportSize({ width: 1800, height: 1500 })
  await show(page, await nodeOf(page, 'WanTune_CacheLatents'))
  await settled()
  await cache.evaluate((node) => { // the folder of this test is of no interest
    const walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT)
    while (walker.nextNode()) walker.currentNode.data = walker.currentNode.data.replace(/ in \/.*/s, ' in ComfyUI/output/wantune/cache')
    for (const field of node.querySelectorAll('textarea')) field.value = field.value.replace(/ in \/.*/s, ' in ComfyUI/output/wantune/cache')
  })
  await picture('05_cache_latents', cache)

  step('it is stopped')
  const again = await panelOf(page, TRAIN)
  await again.getByText(/^Step 4[5-9]\d of /).waitFor({ timeout: 300_000 })
  await again.getByRole('button', { name: text('chart.stop'), exact: true }).click()
  await again.getByText(/The next Queue continues from step \d+/).waitFor()
  await untilIdle()
  await settled()
  await picture('08_stopped', again)

  step('it is compared and kept')
  const player = await panelOf(page, COMPARE)
  await player.locator('video').first().waitFor()
  await held(player)
  await show(page, await nodeOf(page, COMPARE))
  await settled()
  await picture('09_compare', compare)
  for (const [name, type, node] of [['10_save', 'WanTune_SaveLoRA', save], ['10_apply', 'WanTune_ApplyLoRA', apply]]) {
    await show(page, await nodeOf(page, type))
    await settled()
    await picture(name, node)
  }

  step('everything on one picture')
  await openTemplate(page, `${given.template}_close`)
  await pressRun(page)
  await page.waitForTimeout(2000)
  await untilIdle()
  await panelOf(page, TRAIN)
  await held(await panelOf(page, COMPARE))
  await viewed(90, 160, 0.86)
  await page.waitForTimeout(6000) // until the page has stopped telling that the run is done
  await region('train_and_compare', 70, 100, 1660, 1000)

  step('a second run, and both in the sidebar')
  const id = await nodeOf(page, TRAIN)
  await setWidget(page, id, 'run_name', 'quick_try')
  await setWidget(page, id, 'max_steps', 150)
  await pressRun(page)
  await page.waitForTimeout(2000)
  await untilIdle()
  await page.getByRole('button', { name: new RegExp(`^(${text('runs.tab')}|${text('runs.tooltip')})`) }).first().click()
  const list = page.getByRole('list', { name: text('runs.tab') })
  for (const name of [/my_lora/, /quick_try/]) await list.getByRole('checkbox', { name }).first().check()
  await page.waitForFunction(() => document.querySelectorAll('.wt-browser path.wt-smooth').length > 1)
  await settled()
  await picture('11_runs', page.locator('.wt-browser').first())
})

/** Side by side, at the second frame. */
async function held(player) {
  for (const action of ['side', 'pause']) {
    await player.getByRole('button', { name: text(`compare.${action}`), exact: true }).click()
  }
  for (const video of await player.locator('video').all()) await video.evaluate((each) => { each.currentTime = 1.5 / 16 })
}

function file(name) {
  fs.mkdirSync(given.artifacts, { recursive: true })
  return path.join(given.artifacts, `${name}.png`)
}
