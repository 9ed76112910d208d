// Pointer, wheel and keys over a chart: which step is pointed at, and the window of steps that is shown.

import { moved, within, zoomed } from './zoom.js'

const WHEEL_FACTOR = 1.2
const LEAST_DRAG = 5

/**
 * Makes `plot`, a focusable element, zoomable. The wheel zooms the chart only while it has the focus, else the canvas.
 *
 * chart: {stepAt(pixel), view() -> [first, last], end() -> last step there is, setView(window or null),
 * point(pixel or null), pointNext(count of entries or ±Infinity), select([from, to] in pixels, or null)}
 */
export function followPointer(plot, chart) {
  followMouse(plot, chart)
  followWheel(plot, chart)
  plot.addEventListener('keydown', (event) => onKey(event, plot, chart))
  // ComfyUI leaves the wheel to an element with this attribute that has the focus
  plot.addEventListener('focus', () => { plot.dataset.captureWheel = 'true' })
  plot.addEventListener('blur', () => {
    delete plot.dataset.captureWheel
    chart.point(null)
  })
}

/** The x of an event in pixels of the plot, however far the canvas is zoomed. */
function pixelOf(event, plot) {
  const box = plot.getBoundingClientRect()
  return ((event.clientX - box.left) * plot.clientWidth) / box.width
}

function followMouse(plot, chart) {
  let start = null // where it was pressed
  plot.addEventListener('pointerdown', (event) => {
    if (event.button !== 0 || event.target.closest('[role=button]')) return
    plot.focus({ preventScroll: true })
    plot.setPointerCapture(event.pointerId)
    start = pixelOf(event, plot)
  })
  plot.addEventListener('pointermove', (event) => {
    const pixel = pixelOf(event, plot)
    chart.point(pixel)
    if (start !== null) chart.select(Math.abs(pixel - start) >= LEAST_DRAG ? [start, pixel] : null)
  })
  plot.addEventListener('pointerup', (event) => {
    if (start === null) return
    const pixels = [start, pixelOf(event, plot)].sort((a, b) => a - b)
    start = null
    chart.select(null)
    if (pixels[1] - pixels[0] >= LEAST_DRAG) chart.setView(within(pixels.map(chart.stepAt), chart.end()))
  })
  plot.addEventListener('pointercancel', () => {
    start = null
    chart.select(null)
  })
  plot.addEventListener('pointerleave', () => chart.point(null))
  plot.addEventListener('dblclick', (event) => {
    event.stopPropagation()
    chart.setView(null)
  })
}

function followWheel(plot, chart) {
  plot.addEventListener('wheel', (event) => {
    if (document.activeElement !== plot) return
    event.preventDefault()
    event.stopPropagation()
    const [first, last] = chart.view()
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      chart.setView(moved([first, last], (Math.sign(event.deltaX || event.deltaY) * (last - first)) / 10, chart.end()))
    } else {
      const factor = event.deltaY > 0 ? WHEEL_FACTOR : 1 / WHEEL_FACTOR
      chart.setView(zoomed([first, last], chart.stepAt(pixelOf(event, plot)), factor, chart.end()))
    }
  }, { passive: false })
}

function onKey(event, plot, chart) {
  if (event.target !== plot || event.ctrlKey || event.metaKey || event.altKey) return
  const [first, last] = chart.view()
  const pan = (share) => chart.setView(moved([first, last], (last - first) * share, chart.end()))
  const zoom = (factor) => chart.setView(zoomed([first, last], (first + last) / 2, factor, chart.end()))
  const far = event.shiftKey ? 10 : 1
  const keys = {
    ArrowLeft: () => chart.pointNext(-far),
    ArrowRight: () => chart.pointNext(far),
    Home: () => chart.pointNext(-Infinity),
    End: () => chart.pointNext(Infinity),
    PageUp: () => pan(-0.5),
    PageDown: () => pan(0.5),
    '+': () => zoom(0.5),
    '=': () => zoom(0.5),
    '-': () => zoom(2),
    0: () => chart.setView(null),
    Escape: () => plot.blur(),
  }
  if (!keys[event.key]) return
  event.preventDefault()
  event.stopPropagation()
  keys[event.key]()
}
