// Limits drawing to once a second, and to while the element is visible.

const MILLISECONDS_BETWEEN = 1000

/** Returns {ask, now, stop, isVisible}: `draw` is called once soon after any number of ask(), and at once after now();
 * stop() ends it. `onshown` is called when the element becomes visible. */
export function redrawing(element, draw, onshown = () => {}) {
  let isAsked = false
  let isInView = false
  let wasVisible = false
  let timer = 0
  let frame = 0
  let last = 0
  const isVisible = () => isInView && !document.hidden

  function ask() {
    isAsked = true
    if (timer || frame || !isVisible()) return
    timer = setTimeout(() => {
      timer = 0
      frame = requestAnimationFrame(() => {
        frame = 0
        if (!isAsked || !isVisible()) return
        isAsked = false
        last = performance.now()
        draw()
      })
    }, Math.max(0, last + MILLISECONDS_BETWEEN - performance.now()))
  }

  function look() {
    if (isVisible() && !wasVisible) {
      if (isAsked) ask()
      onshown()
    }
    wasVisible = isVisible()
  }

  const observer = new IntersectionObserver((entries) => {
    isInView = entries.at(-1).isIntersecting
    look()
  })
  observer.observe(element)
  document.addEventListener('visibilitychange', look)

  function stop() {
    clearTimeout(timer)
    cancelAnimationFrame(frame)
    observer.disconnect()
    document.removeEventListener('visibilitychange', look)
  }

  /** For what the user did, which must be shown at once. */
  function now() {
    clearTimeout(timer)
    timer = 0
    last = 0
    ask()
  }

  return { ask, now, stop, isVisible }
}
