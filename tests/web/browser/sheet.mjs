// The contact sheet of Load Dataset, before anything is queued: what is trained on, what is not and why; it follows the widgets and the
// folder, and captions can be edited in it.

import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import { assertReadable, inTheme, isRed, tabTo } from './looks.mjs'
import { given, nodeOf, openTemplate, panelOf, scenario, screenshot, setWidget, step, text } from './scenario.mjs'

const LOAD = 'WanTune_LoadDataset'

await scenario(async ({ open, note }) => {
  const page = await open()
  step('open the template')
  await openTemplate(page)
  const id = await nodeOf(page, LOAD)
  const panel = await panelOf(page, LOAD)
  const items = panel.getByRole('listitem')

  step('every file is there, with its picture and its caption')
  await items.first().waitFor()
  assert.equal(Number(await items.first().getAttribute('aria-setsize')), fs.readdirSync(given.pictures)
    .filter((name) => /\.(png|mp4)$/.test(name)).length)
  await untilLoaded(page, items.first().locator('img'))
  assert.equal(await items.first().locator('mark').textContent(), 'GF Carty Chan')
  await screenshot(page, 'sheet')

  step('what is left out says why, in red')
  const choice = panel.getByRole('combobox', { name: text('sheet.show') })
  await choice.selectOption('left_out')
  const broken = panel.getByRole('listitem', { name: /^broken\.png, left out: / })
  await broken.waitFor()
  assert.ok(await isRed(broken.locator('.wt-error').first()))
  await screenshot(page, 'sheet-left-out')
  await choice.selectOption('all')

  step('a clip plays while it is pointed at')
  const search = panel.getByRole('searchbox', { name: text('sheet.filter') })
  await search.fill('clip')
  const clip = panel.getByRole('listitem', { name: /^clip\.mp4/ })
  const image = clip.locator('img')
  await untilLoaded(page, image)
  const still = await image.getAttribute('src')
  await clip.hover()
  await page.waitForFunction(([image, still]) => image.src !== still && image.naturalWidth > 0, [await image.elementHandle(), still])
  await search.fill('')

  step('it follows the widgets, without queueing')
  await setWidget(page, id, 'resolution', 32)
  await panel.getByText('32x32', { exact: true }).first().waitFor()
  await setWidget(page, id, 'trigger_word', 'zwx')
  await page.waitForFunction((panel) => panel.querySelector('mark')?.textContent === 'zwx', await panel.elementHandle())
  await setWidget(page, id, 'folder', 'there is no such folder')
  await panel.getByText(/there is no such folder/).waitFor()
  await setWidget(page, id, 'folder', path.basename(given.pictures))
  await items.first().waitFor()

  step('it follows the folder')
  fs.copyFileSync(path.join(given.pictures, '01.png'), path.join(given.pictures, '00.png'))
  fs.writeFileSync(path.join(given.pictures, '00.txt'), 'a new one')
  await panel.getByRole('listitem', { name: /^00\.png/ }).waitFor()

  step('readable in both themes')
  await note(() => assertReadable(page, '.wantune'))
  await inTheme(page, 'light', async () => {
    await note(() => assertReadable(page, '.wantune'))
    await screenshot(page, 'sheet-light')
  })

  step('by keyboard: Tab reaches the items, arrows go through them')
  await tabTo(page, panel.locator('[role=listitem][tabindex="0"]'))
  const place = () => page.evaluate(() => Number(document.activeElement.getAttribute('aria-posinset')))
  const before = await place()
  await page.keyboard.press('ArrowRight')
  assert.equal(await place(), before + 1)

  step('a caption is edited in place, and what stood there is kept')
  await panel.getByRole('switch', { name: text('sheet.edit') }).check()
  const field = panel.getByRole('textbox', { name: text('sheet.caption_of', { file: '00.png' }) })
  await field.fill('another caption')
  await field.press('Control+Enter')
  const caption = path.join(given.pictures, '00.txt')
  while (fs.readFileSync(caption, 'utf8').trim() !== 'another caption') await new Promise((done) => setTimeout(done, 200))
  assert.equal(fs.readFileSync(`${caption}.bak`, 'utf8').trim(), 'a new one')
  await screenshot(page, 'sheet-editing')

  step('a page in Chinese says what the server says in Chinese')
  const chinese = await open({ 'Comfy.Locale': 'zh' })
  await openTemplate(chinese)
  const there = await panelOf(chinese, LOAD)
  await there.getByRole('combobox').selectOption('left_out')
  await there.getByText('broken.png 不是 Pillow 能读取的图片；请重新另存为 png 或 jpg。').first().waitFor()
  await screenshot(chinese, 'sheet-chinese')
})

async function untilLoaded(page, image) {
  await image.waitFor()
  await page.waitForFunction((image) => image.complete && image.naturalWidth > 0, await image.elementHandle())
}
