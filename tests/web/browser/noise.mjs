// The page of this server with our scripts empty: what it complains about is not ours. Prints {key: times} as its last line.

import { given, openTemplate, pressRun, scenario, screenshot, step, untilIdle, untilNodes } from './scenario.mjs'

await scenario(async ({ open, complaints }) => {
  const page = await open()
  const ours = new RegExp(`/extensions/${encodeURIComponent(given.pack)}/.*\\.js`)
  await page.route(ours, (route) => route.fulfill({ contentType: 'text/javascript', body: '' }))
  step('open the template')
  await openTemplate(page)
  step('queue it')
  await pressRun(page)
  await page.waitForFunction(() => Object.keys(window.app.nodeOutputs ?? {}).length > 0)
  await untilIdle()
  step('reload')
  await page.reload({ waitUntil: 'domcontentloaded' })
  await untilNodes(page)
  await screenshot(page, 'without-us')
  console.log(JSON.stringify(complaints.counted()))
})
