// The buttons under the videos of the player.

import { el, svg } from '../shared/elements.js'
import { t } from '../shared/messages.js'

// SVG paths, since not every system's fonts have these symbols
const ICONS = {
  play: 'M4 2 13 8 4 14Z',
  pause: 'M4 2H7V14H4ZM9 2H12V14H9Z',
  back: 'M3 2H5V14H3ZM13 2V14L6 8Z',
  forward: 'M11 2H13V14H11ZM3 2V14L10 8Z',
  loop: 'M8 2V0L12 3 8 6V4A4 4 0 1 0 12 8H14A6 6 0 1 1 8 2Z',
  large: 'M2 2H7V4H4V7H2ZM9 2H14V7H12V4H9ZM2 9H4V12H7V14H2ZM12 9H14V14H9V12H12Z',
}

const icon = (name) =>
  svg('svg', { class: 'wt-icon', viewBox: '0 0 16 16', 'aria-hidden': 'true' }, svg('path', { d: ICONS[name] }))

/** {buttons, counter, bar}; `act(action)` is called when a button is pressed, `buttons` has them by their action. */
export function createControls(isPair, hasStrip, act) {
  const button = (action, key) => {
    const name = t(`compare.${action}`)
    return el('button', {
      type: 'button', 'data-action': action, title: key ? `${name} (${key})` : name, 'aria-label': name,
      onclick: () => act(action),
    }, ICONS[action] ? icon(action) : name)
  }
  const left = { back: button('back', ','), play: button('play', t('compare.space')), forward: button('forward', '.'),
    loop: button('loop', 'L') }
  const right = {
    ...(isPair && { split: button('split', 'S'), side: button('side', 'D'), blink: button('blink', 'B') }),
    ...(hasStrip && { strip: button('strip') }),
    large: button('large', 'F'),
  }
  const counter = el('span', { class: 'wt-counter wt-faint' })
  const bar = el('div', { class: 'wt-row wt-bar' }, ...Object.values(left), counter, el('span', { class: 'wt-space' }),
    ...Object.values(right))
  return { buttons: { ...left, ...right }, counter, bar }
}

/** Shows the play button as a pause button, or back. */
export function showPlaying(play, isPlaying) {
  const name = t(isPlaying ? 'compare.pause' : 'compare.play')
  if (play.getAttribute('aria-label') === name && play.dataset.playing) return
  play.dataset.playing = isPlaying
  play.replaceChildren(icon(isPlaying ? 'pause' : 'play'))
  play.setAttribute('aria-label', name)
  play.title = `${name} (${t('compare.space')})`
}
