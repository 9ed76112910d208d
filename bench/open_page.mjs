// Opens the page with the example in it, says "open", and stays until its input is closed. See page.py.

import { createRequire } from 'node:module'

const { chromium } = createRequire(import.meta.url)(process.env.WANTUNE_PLAYWRIGHT)
const { url, block } = JSON.parse(process.argv[2])
const browser = await chromium.launch({ executablePath: process.env.WANTUNE_CHROMIUM, args: ['--no-sandbox',
  '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update'] })
const page = await browser.newPage({ viewport: { width: 1600, height: 1000 } })
await page.route((address) => address.host !== new URL(url).host, (route) => route.fulfill({ status: 204, body: '' }))
if (block) await page.route((address) => address.pathname.startsWith(block), (route) => route.fulfill({
  contentType: 'text/javascript', body: '' }))
await page.goto(`${url}/?template=train_and_compare&source=wantune_demo`, { waitUntil: 'domcontentloaded' })
await page.waitForFunction(() => window.app?.graph?.nodes?.some((node) => node.type === 'WanTune_TrainWanLoRA'))
await page.waitForTimeout(3000)
await page.evaluate(() => {
  const { canvas, graph } = window.app
  const node = graph.nodes.find((each) => each.type === 'WanTune_TrainWanLoRA')
  canvas.ds.scale = 0.9
  canvas.ds.offset = [200 - node.pos[0], 80 - node.pos[1]]
  canvas.setDirty(true, true)
})
await page.waitForTimeout(1500)
console.log('open')
process.stdin.resume()
await new Promise((resolve) => process.stdin.on('end', resolve))
await browser.close()
