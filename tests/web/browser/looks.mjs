// Whether a panel of ours can be read in a theme, and reached by keyboard.

import assert from 'node:assert/strict'

const SMALL = 4.5
const LARGE = 3

/** Does something in one of ComfyUI's themes, then goes back to the dark one. */
export async function inTheme(page, name, act) {
  const set = (name) => page.evaluate((name) => window.app.extensionManager.setting.set('Comfy.ColorPalette', name), name)
  const background = () => page.evaluate(() => getComputedStyle(document.documentElement).getPropertyValue('--comfy-input-bg'))
  const before = await background()
  await set(name)
  await page.waitForFunction((before) =>
    getComputedStyle(document.documentElement).getPropertyValue('--comfy-input-bg') !== before, before)
  await act()
  await set('dark')
  await page.waitForFunction((before) =>
    getComputedStyle(document.documentElement).getPropertyValue('--comfy-input-bg') === before, before)
}

/** WCAG: each text that is shown in there contrasts 4.5 : 1 with what is behind it, large text 3 : 1. */
export async function assertReadable(page, selector) {
  const texts = await page.evaluate(measure, selector)
  assert.ok(texts.length > 0, `there is text in ${selector}`)
  const faint = texts.filter(({ contrast, isLarge }) => contrast < (isLarge ? LARGE : SMALL))
  const said = faint.map(({ words, contrast, colour, behind }) => `${contrast.toFixed(2)} "${words}" ${colour} on ${behind}`)
  assert.equal(faint.length, 0, `hard to read in ${selector}:\n${[...new Set(said)].join('\n')}`)
}

/** Whether the text of an element is rather red than anything else. */
export const isRed = (locator) => locator.evaluate((element) => {
  const brush = Object.assign(document.createElement('canvas'), { width: 1, height: 1 }).getContext('2d')
  brush.fillStyle = getComputedStyle(element).color
  brush.fillRect(0, 0, 1, 1)
  const [red, green, blue] = brush.getImageData(0, 0, 1, 1).data
  return red > 1.5 * green && red > 1.5 * blue
})

/** Presses Tab until the element has the focus, and looks whether that is seen. */
export async function tabTo(page, locator, most = 400) {
  const hasFocus = () => locator.evaluate((element) => element === document.activeElement)
  // a focus that a click has given is not marked
  if (await hasFocus()) await page.keyboard.press('Shift+Tab')
  for (let pressed = 0; pressed <= most; pressed++) {
    if (await hasFocus()) {
      const isSeen = await locator.evaluate((element) => {
        const marked = [element, ...element.children].flatMap((each) =>
          [undefined, '::before', '::after'].map((part) => getComputedStyle(each, part)))
        return marked.some((style) => (style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0) || style.strokeWidth > '2')
      })
      assert.ok(isSeen, 'the focus is seen')
      return
    }
    await page.keyboard.press('Tab')
  }
  assert.fail(`${most} times Tab do not reach ${locator}`)
}

/** Runs in the page. */
function measure(selector) {
  const brush = Object.assign(document.createElement('canvas'), { width: 1, height: 1 }).getContext('2d', { willReadFrequently: true })
  // any way of writing a colour becomes numbers; [red, green, blue, alpha of 0..1]
  const rgba = (colour) => {
    brush.clearRect(0, 0, 1, 1)
    brush.fillStyle = '#000'
    brush.fillStyle = colour
    brush.fillRect(0, 0, 1, 1)
    const [red, green, blue, alpha] = brush.getImageData(0, 0, 1, 1).data
    return [red, green, blue, alpha / 255]
  }
  const over = (top, below, alpha = top[3]) => [0, 1, 2].map((index) => top[index] * alpha + below[index] * (1 - alpha))
  const luminance = (colour) => {
    const [red, green, blue] = colour.map((value) => value / 255).map((value) =>
      value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
  }
  const contrastOf = (one, other) => {
    const [light, dark] = [luminance(one), luminance(other)].sort((a, b) => b - a)
    return (light + 0.05) / (dark + 0.05)
  }
  const chain = (element) => (element ? [element, ...chain(element.parentElement)] : [])
  const pictures = [...document.querySelectorAll(selector)].flatMap((root) => [...root.querySelectorAll('video, img, canvas')])
  const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom

  // behind a text are the backgrounds of what it stands in; where it lies on a picture, that may be black or white
  const behindOf = (element, box) => {
    const layers = []
    for (const each of chain(element)) {
      const colour = rgba(getComputedStyle(each).backgroundColor)
      const isOnPicture = pictures.some((picture) => each.contains(picture) && !picture.contains(element) && meet(picture.getBoundingClientRect(), box))
      if (isOnPicture) return [[0, 0, 0], [255, 255, 255]].map((ground) => layers.reduceRight((below, layer) => over(layer, below), ground))
      if (colour[3] > 0) layers.push(colour)
      if (colour[3] === 1) break
    }
    const { NODE_DEFAULT_BGCOLOR: drawn, vueNodesMode: isElement } = window.LiteGraph
    // the classic canvas draws the node behind the panel
    const ground = rgba(isElement || !element.closest('.dom-widget') ? getComputedStyle(document.body).backgroundColor : drawn)
    return [layers.reduceRight((below, layer) => over(layer, below), ground)]
  }

  const found = []
  for (const root of document.querySelectorAll(selector)) {
    for (const element of [root, ...root.querySelectorAll('*')]) {
      const words = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data).join('').trim()
      const isField = element.matches('input:not([type=range], [type=checkbox]), textarea, select')
      if ((!words && !isField) || element.closest(':disabled, [hidden], title, desc')) continue
      const box = element.getBoundingClientRect()
      const style = getComputedStyle(element)
      if (!box.width || !box.height || !element.checkVisibility({ visibilityProperty: true }) || style.clipPath !== 'none') continue
      const text = rgba(element.ownerSVGElement ? style.fill : style.color)
      const opacity = chain(element).reduce((product, each) => product * Number(getComputedStyle(each).opacity), 1)
      const size = parseFloat(style.fontSize)
      const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700)
      for (const behind of behindOf(element, box)) {
        const contrast = contrastOf(over(text, behind, text[3] * opacity), behind)
        found.push({ words: (words || element.value || '').slice(0, 40), contrast, isLarge, colour: text.join(), behind: behind.map(Math.round).join() })
      }
    }
  }
  return found
}
