// One browser, its pages of ComfyUI, and everything they complain about; each script beside this one is one scenario.
//
// test_browser.py starts `node <script> <JSON>` with
//   url        of the server
//   template   of the pack `source`, opened by the page's own ?template=
//   pack       the folder name of WanTune, as it stands in /extensions/<pack>/
//   vue        Nodes 2.0, or else the classic canvas
//   label      names the screenshots in `artifacts`
//   core       complaints of the page without our scripts: {key: times} (see noise.mjs)

import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import { createRequire } from 'node:module'
import { Complaints } from './complaints.mjs'

const { chromium } = createRequire(import.meta.url)(process.env.WANTUNE_PLAYWRIGHT)

const FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--autoplay-policy=no-user-gesture-required']

const MESSAGES = JSON.parse(fs.readFileSync(new URL('../../../locales/en/main.json', import.meta.url), 'utf8')).wantune

/** For anything that depends on the server or on a busy machine. */
export const PATIENCE = 120_000

/** What would otherwise be a dialog, a tour or a panel in front of the canvas. */
const QUIET = {
  'Comfy.TutorialCompleted': true,
  'Comfy.Notification.ShowVersionUpdates': false,
  'Comfy.Workflow.ShowMissingModelsWarning': false,
  'Comfy.Workflow.ShowMissingNodesWarning': false,
  'Comfy.OnboardingCoachmarks.Seen': true,
  'Comfy.RightSidePanel.IsOpen': false,
  'Comfy.Minimap.Visible': false,
  'Comfy.Locale': 'en'
}

export const given = JSON.parse(process.argv[2])

/** Runs one scenario, keeps what can be looked at, and ends the process with 1 if it fails. */
export async function scenario(play) {
  const browser = await chromium.launch({ executablePath: process.env.WANTUNE_CHROMIUM, args: FLAGS })
  const complaints = new Complaints(given)
  const pages = []
  const problems = []
  // What is wrong with the looks does not keep the rest from being played.
  const note = async (act) => {
    try {
      await act()
    } catch (error) {
      if (!(error instanceof assert.AssertionError)) throw error
      problems.push(error.message)
    }
  }
  const open = async (settings = {}) => {
    await post('/settings', { ...QUIET, 'Comfy.VueNodes.Enabled': given.vue, 'Comfy.ColorPalette': 'dark', ...settings })
    const context = await browser.newContext({ viewport: { width: 1600, height: 1000 }, reducedMotion: 'no-preference' })
    // Nothing leaves this machine: what core asks of other hosts is answered with nothing, so it is the same everywhere.
    await context.route((url) => url.host !== new URL(given.url).host && url.protocol.startsWith('http'),
      (route) => route.fulfill({ status: 204, body: '' }))
    await context.addInitScript(() => {
      if (window !== window.top || !location.protocol.startsWith('http')) return
      for (const banner of ['vueNodesBannerDismissed', 'comfy.vueNodesMigration.dismissed']) localStorage.setItem(banner, 'true')
    })
    const page = await context.newPage()
    page.setDefaultTimeout(PATIENCE)
    pages.push(page)
    await complaints.listen(page)
    return page
  }
  let failure
  try {
    await play({ open, note, complaints })
    if (given.core) await note(() => complaints.check())
    assert.equal(problems.length, 0, problems.join('\n'))
  } catch (error) {
    failure = error
    for (const [number, page] of pages.entries()) await screenshot(page, `failed-${number}`).catch(() => {})
  } finally {
    await browser.close()
  }
  if (!failure) return
  console.log((failure.stack ?? String(failure)).split('\n').slice(0, 60).join('\n'))
  console.log(`--- everything the pages said\n${complaints.everything()}`)
  process.exitCode = 1
}

/** A line in the output, so that a failure tells how far it came. */
export function step(text) {
  console.log(`${new Date().toISOString().slice(11, 19)} ${text}`)
}

export async function post(where, body) {
  const options = { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) }
  const answer = await fetch(given.url + where, options)
  assert.ok(answer.ok, `POST ${where}: ${answer.status}`)
  return answer
}

export const ask = async (where) => (await fetch(given.url + where)).json()

/** Opens the template as a user's link does, and waits until its nodes stand there. */
export async function openTemplate(page, template = given.template, source = given.source) {
  await page.goto(`${given.url}/?template=${template}&source=${source}`, { waitUntil: 'domcontentloaded' })
  await untilNodes(page)
}

/** Until the graph with our nodes is there, as after a reload. */
export async function untilNodes(page) {
  const isThere = () => window.app?.graph?.nodes?.some((node) => node.type === 'WanTune_TrainWanLoRA')
  await page.waitForFunction(isThere, null, { timeout: PATIENCE })
  await page.locator('#vue-app .p-progressspinner, #splash-loader').first().waitFor({ state: 'hidden' }).catch(() => {})
}

/** The id of the only node of a type. */
export const nodeOf = (page, type) => page.evaluate((type) => {
  return window.app.graph.nodes.find((node) => node.type === type).id
}, type)

/** Brings a node into the window at scale 1. */
export async function show(page, id, [x, y] = [420, 130]) {
  await page.evaluate(([id, x, y]) => {
    const { canvas, graph } = window.app
    const node = graph.getNodeById(id)
    canvas.ds.scale = 1
    canvas.ds.offset = [x - node.pos[0], y - node.pos[1]]
    canvas.setDirty(true, true)
  }, [id, x, y])
  await untilDrawn(page)
}

const untilDrawn = (page) =>
  page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))))

/** Our panel in the only node of a type, brought into the window so that it can be clicked. */
export async function panelOf(page, type) {
  const id = await nodeOf(page, type)
  await show(page, id)
  const mark = `wantune-test-${id}`
  await page.waitForFunction(([id, mark]) => {
    const widget = window.app.graph.getNodeById(id).widgets.find((each) => each.element?.classList?.contains('wantune'))
    if (widget) widget.element.dataset.testid = mark
    return widget?.element.isConnected
  }, [id, mark])
  const panel = page.getByTestId(mark)
  await panel.waitFor()
  // how high the node stands over its panel differs between renderers
  await page.waitForFunction((element) => {
    const { left, top } = element.getBoundingClientRect()
    if (Math.abs(left - 420) < 2 && Math.abs(top - 150) < 2) return true
    const { ds } = window.app.canvas
    ds.offset = [ds.offset[0] + (420 - left) / ds.scale, ds.offset[1] + (150 - top) / ds.scale]
    window.app.canvas.setDirty(true, true)
    return false
  }, await panel.elementHandle(), { polling: 200 })
  return panel
}

/** What the page says in English, as locales/en has it. */
export function text(key, values = {}) {
  const found = key.split('.').reduce((node, part) => node?.[part], MESSAGES)
  assert.equal(typeof found, 'string', `locales/en has no ${key}`)
  return found.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole)
}

/** Sets a widget as typing into it would. */
export const setWidget = (page, id, name, value) => page.evaluate(([id, name, value]) => {
  const node = window.app.graph.getNodeById(id)
  const widget = node.widgets.find((each) => each.name === name)
  widget.value = value
  widget.callback?.(value, window.app.canvas, node)
}, [id, name, value])

/** The page's own Run button. */
export async function pressRun(page) {
  await page.getByTestId('queue-button').first().click()
}

export async function screenshot(page, name) {
  fs.mkdirSync(given.artifacts, { recursive: true })
  await page.screenshot({ path: path.join(given.artifacts, `${given.label}-${name}.png`) })
}

/** Until nothing waits or runs on the server. */
export async function untilIdle() {
  for (;;) {
    const queue = await ask('/queue')
    if (!queue.queue_running.length && !queue.queue_pending.length) return
    await new Promise((done) => setTimeout(done, 200))
  }
}
